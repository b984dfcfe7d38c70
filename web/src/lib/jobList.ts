// The list of jobs as it is shown: newest first, changed one by one, filtered.
import type { Job, JobStatus } from '../api/types';

export interface JobFilter {
  status: JobStatus | null;
  text: string;
}

export const STATUSES: readonly JobStatus[] = [
  'running',
  'queued',
  'paused',
  'succeeded',
  'failed',
  'cancelled',
];

export const isTerminal = (status: JobStatus): boolean =>
  status === 'succeeded' || status === 'failed' || status === 'cancelled';

/** What a job is called; a name that nobody can see gives way to the end of its id, which the filter finds, too. */
export const titleOf = (job: Job): string => (job.name.trim() === '' ? job.id.slice(-8) : job.name);

/** The list with a job put in or replaced; an older state of a job that overtook a newer one is left out. */
export function upsertJob(jobs: readonly Job[], job: Job): readonly Job[] {
  const index = jobs.findIndex((other) => other.id === job.id);
  const old = jobs[index];
  if (!old) return [...jobs, job].sort(newestFirst);
  return old.cursor > job.cursor ? jobs : jobs.with(index, job);
}

export function matches(job: Job, filter: JobFilter): boolean {
  if (filter.status !== null && job.status !== filter.status) return false;
  const text = filter.text.trim().toLowerCase();
  return text === '' || [job.name, job.id].some((field) => field.toLowerCase().includes(text));
}

/** Ids are time-ordered, so they settle jobs of one instant. */
function newestFirst(a: Job, b: Job): number {
  return b.created_at.localeCompare(a.created_at) || b.id.localeCompare(a.id);
}
