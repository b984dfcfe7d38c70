// Short names for the wire's shapes; the shapes themselves are generated from the API (`npm run types`).
import type { components } from './schema';

type Schemas = components['schemas'];

export type Job = Schemas['Job'];
export type JobStatus = Schemas['JobStatus'];
export type Progress = Schemas['Progress'];
export type Attempt = Schemas['Attempt'];
export type Result = Schemas['Result'];
export type JobEvent = Schemas['Event'];
export type Host = Schemas['Host'];
export type Device = Schemas['Device'];
export type Metrics = Schemas['Metrics'];
/** [step, value, at] or, for a value that JSON cannot say, [step, null, at, which]. */
export type MetricPoint = Schemas['Series']['points'][number];
/** The data of a job stream's `metrics` message. */
export type MetricsMessage = Schemas['MetricsMessage'];
/** A decoded byte range [offset, end) of one rank's raw log. */
export type LogMessage = Schemas['LogMessage'];
export type Problem = Schemas['Problem'];
export type JobPage = Schemas['JobPage'];
export type EventPage = Schemas['EventPage'];
