// The only place that calls the API. Every function answers the decoded body or throws ApiError.
import type { Attempt, Host, Job, JobEvent, JobStatus, Metrics, Page, Problem } from './types';

/** An answer other than 2xx; status 0 means that no answer came at all. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

export interface JobsQuery {
  status?: JobStatus | undefined;
  q?: string | undefined;
  limit?: number | undefined;
  after?: string | undefined;
}

export interface LogQuery {
  rank?: number | undefined;
  attempt?: number | undefined;
  tail?: number | undefined;
  offset?: number | undefined;
}

/** A stretch of one rank's log: text of the raw bytes [offset, end). */
export interface LogSlice {
  attempt: number;
  rank: number;
  offset: number;
  end: number;
  text: string;
}

export const listJobs = (query: JobsQuery): Promise<Page<Job>> => getJson(`/jobs${toQuery({ ...query })}`);
export const getJob = (id: string): Promise<Job> => getJson(jobPath(id));
export const cancelJob = (id: string): Promise<Job> => postJson(`${jobPath(id)}/cancel`);
export const listAttempts = (id: string): Promise<{ data: Attempt[] }> => getJson(`${jobPath(id)}/attempts`);
export const listEvents = (id: string, after?: string): Promise<Page<JobEvent>> =>
  getJson(`${jobPath(id)}/events${toQuery({ limit: 1000, after })}`);
export const getMetrics = (id: string, names: readonly string[]): Promise<Metrics> =>
  getJson(`${jobPath(id)}/metrics${toQuery({ names: names.join(','), max_points: 2000 })}`);
export const listHosts = (): Promise<{ data: Host[] }> => getJson('/hosts');
export const login = (credentials: { code: string } | { token: string }): Promise<void> =>
  postJson('/login', credentials);
export const logout = (): Promise<void> => postJson('/logout');

export const streamUrl = (): string => '/stream';
export const jobStreamUrl = (id: string, after: string): string =>
  `${jobPath(id)}/stream${toQuery({ after })}`;
export const logUrl = (id: string, query: LogQuery): string => `${jobPath(id)}/logs${toQuery({ ...query })}`;

/** The text of a log with where it stands; null when the attempt has no log yet. */
export async function getLog(id: string, query: LogQuery): Promise<LogSlice | null> {
  let response: Response;
  try {
    response = await request('GET', logUrl(id, query));
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) return null;
    throw error;
  }
  const text = await response.text();
  const header = (name: string): number => Number(response.headers.get(`Longyard-Log-${name}`) ?? 0);
  return {
    attempt: header('Attempt'),
    rank: header('Rank'),
    offset: header('Offset'),
    end: header('End'),
    text,
  };
}

async function getJson<T>(path: string): Promise<T> {
  const response = await request('GET', path);
  return (await response.json()) as T;
}

async function postJson<T>(path: string, body: unknown = {}): Promise<T> {
  const response = await request('POST', path, body);
  return (response.status === 204 ? undefined : await response.json()) as T;
}

async function request(method: string, path: string, body?: unknown): Promise<Response> {
  const init: RequestInit = { method, credentials: 'same-origin', cache: 'no-store' };
  if (body !== undefined) {
    init.headers = { 'Content-Type': 'application/json' };
    init.body = JSON.stringify(body);
  }
  let response: Response;
  try {
    response = await fetch(path, init);
  } catch {
    throw new ApiError(0, 'no answer');
  }
  if (!response.ok) throw new ApiError(response.status, await problemText(response));
  return response;
}

async function problemText(response: Response): Promise<string> {
  try {
    const problem = (await response.json()) as Partial<Problem>;
    return problem.detail ?? problem.title ?? response.statusText;
  } catch {
    return response.statusText;
  }
}

const jobPath = (id: string): string => `/jobs/${encodeURIComponent(id)}`;

function toQuery(parameters: Record<string, string | number | undefined>): string {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== undefined && value !== '') query.set(name, String(value));
  }
  const text = query.toString();
  return text && `?${text}`;
}
