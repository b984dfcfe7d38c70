// What can be done with a job as it stands: pause, resume, retry, cancel.
import { useSignal } from '@preact/signals';
import { ApiError, type Action } from '../api/client';
import type { Job } from '../api/types';
import { actionsOf, type Plain } from '../lib/actions';
import { messages } from '../state/preferences';
import { Cancel } from './Cancel';

export function Actions({ job, act }: { job: Job; act: (action: Action) => Promise<void> }) {
  const t = messages.value;
  const sending = useSignal<Plain | null>(null);
  const problem = useSignal<string | null>(null);
  const send = async (action: Plain): Promise<void> => {
    sending.value = action;
    problem.value = null;
    try {
      await act(action);
    } catch (error) {
      problem.value = t.action_failed(
        error instanceof ApiError && error.status > 0 ? error.message : t.no_answer,
      );
    } finally {
      sending.value = null;
    }
  };
  return (
    <div class="actions">
      {actionsOf(job).map((action) => (
        <button
          key={action}
          type="button"
          class={`button ${action === 'pause' ? '' : 'button-primary'}`}
          title={t.action_hints[action]}
          disabled={sending.value !== null}
          data-testid={action}
          onClick={() => void send(action)}
        >
          {t.actions[action]}
        </button>
      ))}
      <Cancel job={job} cancel={() => act('cancel')} />
      {problem.value !== null && (
        <p class="action-problem" role="alert">
          {problem.value}
        </p>
      )}
    </div>
  );
}
