// The wire's shapes, as docs/api.md states them. What is not known yet is null.

export type JobStatus = 'queued' | 'running' | 'paused' | 'succeeded' | 'failed' | 'cancelled';
export type Intent = 'run' | 'pause' | 'cancel' | 'preempt';
export type HostStatus = 'online' | 'draining' | 'lost';
export type DeviceState = 'free' | 'held' | 'unverified' | 'quarantined';

export interface Progress {
  step: number | null;
  total_steps: number | null;
  fraction: number | null;
  eta_s: number | null;
  phase: string | null;
}

export interface Wait {
  position: number | null;
  reason: string | null;
  estimated_start_at: string | null;
}

export interface Attempt {
  number: number;
  host: string | null;
  devices: number[];
  device_type: string;
  status: string;
  exit_reason: string | null;
  message: string | null;
  failing_rank: number | null;
  started_at: string | null;
  finished_at: string | null;
}

export interface Result {
  perplexity: number | null;
  initial_perplexity: number | null;
  fps: number | null;
  fps_wall: number | null;
  train_loss: number | null;
  epochs: number | null;
  torch_version: string | null;
  output: string | null;
}

export interface Job {
  id: string;
  name: string;
  status: JobStatus;
  status_reason: string | null;
  intent: Intent;
  preset: string;
  train: Record<string, unknown>;
  num_devices: number;
  device_type: string;
  priority: number;
  labels: Record<string, string>;
  owner: string;
  time_limit_s: number | null;
  created_at: string;
  started_at: string | null;
  finished_at: string | null;
  progress: Progress | null;
  wait: Wait | null;
  attempt: Attempt | null;
  result: Result | null;
  log_tail: string[] | null;
  cursor: number;
}

export interface JobEvent {
  seq: number;
  kind: string;
  data: Record<string, unknown>;
  at: string;
}

/** [step, value, at] or, for a value that JSON cannot say, [step, null, at, which]. */
export type MetricPoint = [number, number | null, string] | [number, null, string, 'nan' | 'inf' | '-inf'];

export interface MetricSeries {
  name: string;
  attempt: number;
  points: MetricPoint[];
  min: number | null;
  max: number | null;
}

export interface Metrics {
  series: MetricSeries[];
  truncated: boolean;
  cursor: number;
}

export interface MetricsMessage {
  attempt: number;
  series: Record<string, MetricPoint[]>;
}

/** A decoded byte range [offset, end) of one rank's raw log. */
export interface LogMessage {
  attempt: number;
  rank: number;
  offset: number;
  end: number;
  text: string;
}

export interface Device {
  index: number;
  name: string | null;
  state: DeviceState;
  cordoned: boolean;
  job_id: string | null;
  attempt: number | null;
}

export interface Host {
  name: string;
  status: HostStatus;
  device_type: string;
  devices: Device[];
  versions: Record<string, string>;
  last_seen_at: string | null;
}

export interface Page<T> {
  data: T[];
  has_more: boolean;
  next: string | null;
}

export interface FieldError {
  field: string;
  code: string;
  message: string;
  fix: string | null;
}

export interface Problem {
  type: string;
  title: string;
  status: number;
  code: string;
  detail: string;
  errors: FieldError[];
  request_id: string;
}
