// The only place that calls the API. Every function answers the decoded body or throws ApiError.
import createClient from 'openapi-fetch';
import type { operations, paths } from './schema';
import type { Attempt, EventPage, Host, Job, JobPage, LogMessage, Metrics, Problem } from './types';

/** An answer other than 2xx; status 0 means that no answer came at all. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

export type JobsQuery = NonNullable<operations['list_jobs']['parameters']['query']>;
export type LogQuery = Pick<
  NonNullable<operations['get_logs']['parameters']['query']>,
  'rank' | 'attempt' | 'tail' | 'offset'
>;
export type Action = 'cancel' | 'pause' | 'resume' | 'retry';
export type Credentials = { code: string } | { token: string };

const MAX_POINTS = 2000;
const MAX_EVENTS = 1000;

const api = createClient<paths>({ credentials: 'same-origin', cache: 'no-store' });

export const listJobs = (query: JobsQuery): Promise<JobPage> => body(api.GET('/jobs', { params: { query } }));

export const getJob = (id: string): Promise<Job> => body(api.GET('/jobs/{job_id}', of(id)));

/** Answers the job as it stands then; a state that does not allow the action is a 409. */
export const actOnJob = (id: string, action: Action): Promise<Job> =>
  body(api.POST(`/jobs/{job_id}/${action}`, of(id)));

export const listAttempts = (id: string): Promise<{ data: Attempt[] }> =>
  body(api.GET('/jobs/{job_id}/attempts', of(id)));

export const listEvents = (id: string, after: number): Promise<EventPage> =>
  body(api.GET('/jobs/{job_id}/events', of(id, { limit: MAX_EVENTS, after })));

export const getMetrics = (id: string, names: readonly string[]): Promise<Metrics> =>
  body(
    api.GET('/jobs/{job_id}/metrics', of(id, { names: names.join(','), max_points: MAX_POINTS })),
  ) as Promise<Metrics>; // the same path answers text to format=csv, which is not asked for

export const listHosts = (): Promise<{ data: Host[] }> => body(api.GET('/hosts'));

/** Whether new jobs start there. Answers the host as it stands then. */
export const drainHost = (name: string, drained: boolean): Promise<Host> =>
  body(api.POST(`/hosts/{name}/${drained ? 'drain' : 'undrain'}`, { params: { path: { name } } }));

/** Whether the card is given to new jobs. */
export const cordonDevice = (name: string, index: number, cordoned: boolean): Promise<Host> =>
  body(
    api.POST(`/hosts/{name}/devices/{index}/${cordoned ? 'cordon' : 'uncordon'}`, {
      params: { path: { name, index } },
    }),
  );

export const login = (credentials: Credentials): Promise<unknown> =>
  body(api.POST('/login', { body: credentials }));

export const logout = (): Promise<unknown> => body(api.POST('/logout'));

/** A stretch of one rank's log; null while the job has none. */
export async function getLog(id: string, query: LogQuery): Promise<LogMessage | null> {
  const { data, response, error } = await answered(
    api.GET('/jobs/{job_id}/logs', { ...of(id, query), parseAs: 'text' }),
  );
  if (response.status === 404) return null;
  if (!response.ok) throw refusal(response, error);
  const header = (name: string): number => Number(response.headers.get(`Longyard-Log-${name}`));
  return {
    attempt: header('Attempt'),
    rank: header('Rank'),
    offset: header('Offset'),
    end: header('End'),
    text: data ?? '',
  };
}

export const streamUrl = (): string => '/stream';

export const jobStreamUrl = (id: string, after: string): string =>
  `/jobs/${encodeURIComponent(id)}/stream?after=${encodeURIComponent(after)}`;

export const logUrl = (id: string, rank: number, attempt: number): string =>
  `/jobs/${encodeURIComponent(id)}/logs?rank=${rank}&attempt=${attempt}`;

interface Answer<T> {
  data?: T;
  error?: unknown;
  response: Response;
}

async function body<T>(answer: Promise<Answer<T>>): Promise<T> {
  const { data, error, response } = await answered(answer);
  if (!response.ok) throw refusal(response, error);
  return data as T;
}

async function answered<T>(answer: Promise<Answer<T>>): Promise<Answer<T>> {
  try {
    return await answer;
  } catch {
    throw new ApiError(0, 'no answer');
  }
}

function refusal(response: Response, error: unknown): ApiError {
  const problem = (typeof error === 'object' && error !== null ? error : {}) as Partial<Problem>;
  return new ApiError(response.status, problem.detail ?? problem.title ?? response.statusText);
}

function of(id: string): { params: { path: { job_id: string } } };
function of<Query>(id: string, query: Query): { params: { path: { job_id: string }; query: Query } };
function of(id: string, query?: unknown): { params: { path: { job_id: string }; query?: unknown } } {
  return { params: { path: { job_id: id }, ...(query === undefined ? {} : { query }) } };
}
