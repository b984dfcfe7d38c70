// All jobs and hosts, for the two list pages: read once, then changed by the one stream they share.
import { signal } from '@preact/signals';
import { listHosts, listJobs, streamUrl } from '../api/client';
import { follow } from '../api/follow';
import type { Host, Job } from '../api/types';
import { upsertJob, type JobFilter } from '../lib/jobList';
import { failure, type Loading } from './loading';

const PAGE = 50;
const LONGEST_PAGE = 1000;
const TYPING_MS = 250;

export const filter = signal<JobFilter>({ status: null, text: '' });
export const jobs = signal<readonly Job[]>([]);
export const more = signal<string | null>(null);
export const jobsLoading = signal<Loading>({ state: 'loading' });
export const hosts = signal<readonly Host[]>([]);
export const hostsLoading = signal<Loading>({ state: 'loading' });

let request = 0;

/** Keep the lists live until the returned function is called. */
export function watchYard(): () => void {
  const stream = follow({
    url: streamUrl,
    probe: listHosts,
    on: {
      reset: () => void Promise.all([readJobs(), readHosts()]),
      job: (job: Job) => (jobs.value = upsertJob(jobs.value, job)),
      host: (host: Host) => (hosts.value = upsertHost(hosts.value, host)),
    },
  });
  const stopFilter = watchFilter();
  return () => {
    stopFilter();
    stream.close();
  };
}

/** Read the list again, as long as it is now. */
export async function readJobs(): Promise<void> {
  const mine = ++request;
  const { status, text } = filter.peek();
  const limit = Math.min(LONGEST_PAGE, Math.max(PAGE, jobs.peek().length));
  try {
    const page = await listJobs({ status, q: text.trim() || null, limit });
    if (mine !== request) return;
    jobs.value = page.data;
    more.value = page.has_more ? page.next : null;
    jobsLoading.value = { state: 'ready' };
  } catch (error) {
    if (mine === request) jobsLoading.value = failure(error);
  }
}

export async function readMoreJobs(): Promise<void> {
  const mine = request;
  const { status, text } = filter.peek();
  if (more.peek() === null) return;
  try {
    const page = await listJobs({ status, q: text.trim() || null, limit: PAGE, after: more.peek() });
    if (mine !== request) return;
    jobs.value = page.data.reduce(upsertJob, jobs.peek());
    more.value = page.has_more ? page.next : null;
  } catch (error) {
    if (mine === request) jobsLoading.value = failure(error);
  }
}

export async function readHosts(): Promise<void> {
  try {
    hosts.value = (await listHosts()).data;
    hostsLoading.value = { state: 'ready' };
  } catch (error) {
    hostsLoading.value = failure(error);
  }
}

/** A host as an action has answered it, before the stream tells the same. */
export const showHost = (host: Host): void => void (hosts.value = upsertHost(hosts.peek(), host));

/** The stream's `reset` makes the first read; after that every change of the filter reads anew, once typing rests. */
function watchFilter(): () => void {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let first = true;
  const stop = filter.subscribe(() => {
    clearTimeout(timer);
    if (!first) timer = setTimeout(() => void readJobs(), TYPING_MS);
    first = false;
  });
  return () => {
    clearTimeout(timer);
    stop();
  };
}

function upsertHost(list: readonly Host[], host: Host): readonly Host[] {
  const others = list.filter((other) => other.name !== host.name);
  return [...others, host].sort((a, b) => a.name.localeCompare(b.name));
}
