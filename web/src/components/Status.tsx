// A job's status as shape, colour and word.
import type { Job } from '../api/types';
import { messages } from '../state/preferences';
import { Icon } from './Icon';

const STOPPING = new Map<Job['intent'], 'cancelling' | 'pausing'>([
  ['cancel', 'cancelling'],
  ['pause', 'pausing'],
]);

export function Status({ job, large = false }: { job: Pick<Job, 'status' | 'intent'>; large?: boolean }) {
  const t = messages.value;
  const stopping = job.status === 'running' ? STOPPING.get(job.intent) : undefined;
  return (
    <span
      class={`status status-${job.status} ${large ? 'status-large' : ''}`}
      data-testid="status"
      data-status={job.status}
    >
      <Icon name={job.status} />
      <span>{stopping ? t[stopping] : t[job.status]}</span>
    </span>
  );
}
