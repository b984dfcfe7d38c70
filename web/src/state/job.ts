// One job's page: its snapshot, then everything that the job's stream adds.
import { computed, signal, type ReadonlySignal, type Signal } from '@preact/signals';
import {
  actOnJob,
  getJob,
  getMetrics,
  jobStreamUrl,
  listAttempts,
  listEvents,
  type Action,
} from '../api/client';
import { connection, follow } from '../api/follow';
import type { Attempt, EventPage, Job, JobEvent, LogMessage, MetricsMessage } from '../api/types';
import { isTerminal } from '../lib/jobList';
import { addPoints, emptySeries, lastStepOf, type Series } from '../lib/series';
import { openLog, type LogView } from './log';
import { failure, type Loading } from './loading';

export const CHARTED = [
  'loss',
  'eval_loss',
  'perplexity',
  'samples_per_second',
  'tokens_per_second',
  'learning_rate',
] as const;
export type Charted = (typeof CHARTED)[number];

export interface JobView {
  loading: Signal<Loading>;
  job: Signal<Job | null>;
  attempts: Signal<readonly Attempt[]>;
  events: Signal<readonly JobEvent[]>;
  series: Record<Charted, Signal<Series>>;
  lastStep: ReadonlySignal<number>;
  log: LogView;
  act: (action: Action) => Promise<void>;
  reload: () => void;
  close: () => void;
}

/** Open a job and keep it live until `close`. */
export function openJob(id: string): JobView {
  const loading = signal<Loading>({ state: 'loading' });
  const job = signal<Job | null>(null);
  const attempts = signal<readonly Attempt[]>([]);
  const events = signal<readonly JobEvent[]>([]);
  const series = emptyCharts();
  const log = openLog(id);
  let stream: ReturnType<typeof follow> | null = null;
  let closed = false;
  let cursor = '';

  const takeJob = (next: Job): void => {
    if (job.value && job.value.cursor > next.cursor) return;
    job.value = next;
    if (next.attempt) attempts.value = upsertAttempt(attempts.value, next.attempt);
  };
  const takePoints = (name: string, attempt: number, points: MetricsMessage['series'][string]): void => {
    if (!isCharted(name)) return;
    series[name].value = addPoints(series[name].value, attempt, points);
  };
  const takeEvents = (more: readonly JobEvent[]): void => {
    events.value = mergeEvents(events.value, more);
  };

  const readEvents = async (): Promise<void> => {
    for (let after: number | null = 0; after !== null && !closed;) {
      const page: EventPage = await listEvents(id, after);
      takeEvents(page.data);
      after = page.has_more ? Number(page.next) : null;
    }
  };
  const readMetrics = async (): Promise<void> => {
    for (const { name, attempt, points } of (await getMetrics(id, CHARTED)).series) {
      takePoints(name, attempt, points);
    }
  };
  const readAttempts = async (): Promise<void> => {
    attempts.value = (await listAttempts(id)).data.reduce(upsertAttempt, attempts.value);
  };

  const begin = (): void => {
    stream = follow({
      url: () => jobStreamUrl(id, cursor),
      probe: () => getJob(id),
      on: {
        job: moved((next: Job) => takeJob(next)),
        metrics: moved((message: MetricsMessage) => {
          for (const [name, points] of Object.entries(message.series))
            takePoints(name, message.attempt, points);
        }),
        log: moved((message: LogMessage) => log.take(message)),
        event: moved((event: JobEvent) => takeEvents([event])),
        end: () => {
          stream?.end();
          stream = null;
          // It was queued again while the word of its end was on its way.
          if (job.value && !isTerminal(job.value.status)) begin();
        },
      },
    });
  };
  /** The cursor moves with every message, so a stream that is opened anew starts where this one stood. */
  const moved =
    <T>(take: (data: T) => void) =>
    (data: T, eventId: string): void => {
      take(data);
      if (eventId) cursor = eventId;
    };

  /** The stream of a job that had ended is over: one that is queued again opens another, from where that stood. */
  const act = async (action: Action): Promise<void> => {
    const next = await actOnJob(id, action);
    takeJob(next);
    if (!closed && stream === null && !isTerminal(next.status)) begin();
  };

  const load = async (): Promise<void> => {
    try {
      const first = await getJob(id);
      takeJob(first);
      cursor = String(first.cursor);
      loading.value = { state: 'ready' };
      // A job that was never placed has no log to read; its first bytes come by the stream.
      const readLog = first.attempt ? log.load : log.begin;
      await Promise.all([readMetrics(), readEvents(), readAttempts(), readLog()]);
      if (!closed) begin();
    } catch (error) {
      if (!closed) loading.value = failure(error);
    }
  };

  void load();
  return {
    loading,
    job,
    attempts,
    events,
    series,
    lastStep: computed(() => Math.max(0, ...CHARTED.map((name) => lastStepOf(series[name].value)))),
    log,
    act,
    reload: () => void load(),
    close: () => {
      closed = true;
      log.close();
      stream?.close();
      // A stream that has ended says so until its page is left.
      connection.value = null;
    },
  };
}

function emptyCharts(): Record<Charted, Signal<Series>> {
  return Object.fromEntries(CHARTED.map((name) => [name, signal<Series>(emptySeries)])) as Record<
    Charted,
    Signal<Series>
  >;
}

const isCharted = (name: string): name is Charted => (CHARTED as readonly string[]).includes(name);

function upsertAttempt(attempts: readonly Attempt[], attempt: Attempt): readonly Attempt[] {
  const others = attempts.filter((other) => other.number !== attempt.number);
  return [...others, attempt].sort((a, b) => a.number - b.number);
}

function mergeEvents(events: readonly JobEvent[], more: readonly JobEvent[]): readonly JobEvent[] {
  const bySeq = new Map([...events, ...more].map((event) => [event.seq, event]));
  return [...bySeq.values()].sort((a, b) => a.seq - b.seq);
}
