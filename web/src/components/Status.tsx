// A job's status as shape, colour and word.
import type { Job } from '../api/types';
import { messages } from '../state/preferences';
import { Icon } from './Icon';

export function Status({ job, large = false }: { job: Pick<Job, 'status' | 'intent'>; large?: boolean }) {
  const t = messages.value;
  const cancelling = job.status === 'running' && job.intent === 'cancel';
  return (
    <span
      class={`status status-${job.status} ${large ? 'status-large' : ''}`}
      data-testid="status"
      data-status={job.status}
    >
      <Icon name={job.status} />
      <span>{cancelling ? t.cancelling : t[job.status]}</span>
    </span>
  );
}
