// Which actions a job's state allows; the server's rules, so that no button is shown that would be refused.
import type { Job } from '../api/types';

/** The actions that need no second asking. */
export type Plain = 'pause' | 'resume' | 'retry';

export function actionsOf(job: Pick<Job, 'status' | 'intent'>): readonly Plain[] {
  if (job.status === 'failed' || job.status === 'cancelled') return ['retry'];
  if (job.status === 'succeeded' || job.intent === 'cancel') return [];
  if (job.status === 'paused' || job.intent === 'pause') return ['resume'];
  return ['pause'];
}
