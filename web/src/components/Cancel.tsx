// The cancel button of a job, which asks once more in the page.
import { useSignal } from '@preact/signals';
import { useEffect, useRef } from 'preact/hooks';
import { ApiError } from '../api/client';
import type { Job } from '../api/types';
import { isTerminal } from '../lib/jobList';
import { messages } from '../state/preferences';

export function Cancel({ job, cancel }: { job: Job; cancel: () => Promise<void> }) {
  const t = messages.value;
  const asking = useSignal(false);
  const sending = useSignal(false);
  const problem = useSignal<string | null>(null);
  const ask = useRef<HTMLButtonElement>(null);
  const keep = useRef<HTMLButtonElement>(null);
  const wasAsking = useRef(false);
  // The focus goes along: to the harmless answer, and back to where the question came from.
  useEffect(() => {
    if (asking.value) keep.current?.focus();
    else if (wasAsking.current) ask.current?.focus();
    wasAsking.current = asking.value;
  }, [asking.value]);

  if (isTerminal(job.status)) return null;
  if (job.intent === 'cancel' || sending.value) {
    return (
      <button type="button" class="button" disabled data-testid="cancel">
        {t.cancelling}
      </button>
    );
  }
  const send = async (): Promise<void> => {
    sending.value = true;
    problem.value = null;
    try {
      await cancel();
      asking.value = false;
    } catch (error) {
      problem.value = t.cancel_failed(
        error instanceof ApiError && error.status > 0 ? error.message : t.no_answer,
      );
    } finally {
      sending.value = false;
    }
  };
  if (!asking.value) {
    return (
      <button
        type="button"
        class="button"
        ref={ask}
        data-testid="cancel"
        onClick={() => (asking.value = true)}
      >
        {t.cancel}
      </button>
    );
  }
  return (
    <div
      class="confirm"
      role="alertdialog"
      aria-label={t.cancel_question}
      onKeyDown={(event) => event.key === 'Escape' && (asking.value = false)}
    >
      <p>{problem.value ?? t.cancel_question}</p>
      <div class="confirm-actions">
        <button
          type="button"
          class="button button-danger"
          data-testid="cancel-confirm"
          onClick={() => void send()}
        >
          {t.cancel_confirm}
        </button>
        <button type="button" class="button" ref={keep} onClick={() => (asking.value = false)}>
          {t.cancel_keep}
        </button>
      </div>
    </div>
  );
}
