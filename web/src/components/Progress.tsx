// How far a job is: a bar, its step, and the time that is left.
import type { Job } from '../api/types';
import { formatCount, formatDuration, formatPercent } from '../lib/format';
import type { Messages } from '../lib/messages';
import { locale, messages } from '../state/preferences';

const PHASES = {
  load: 'phase_load',
  train: 'phase_train',
  evaluate: 'phase_evaluate',
  save: 'phase_save',
  end: 'phase_end',
} as const satisfies Record<string, keyof Messages>;

export function ProgressBar({ job }: { job: Job }) {
  const fraction = job.status === 'succeeded' ? 1 : (job.progress?.fraction ?? 0);
  return (
    <progress
      class={`bar bar-${job.status}`}
      max={1}
      value={fraction}
      aria-label={messages.value.col_progress}
      data-testid="progress"
    />
  );
}

/** "step 40 of 300 · 13% · 2 min left", of which what is known. */
export function ProgressText({ job, percent = true }: { job: Job; percent?: boolean }) {
  const t = messages.value;
  const progress = job.progress;
  if (!progress) return null;
  const step = formatCount(progress.step, locale.value);
  const parts = [
    progress.total_steps === null
      ? t.step(step)
      : t.step_of(step, formatCount(progress.total_steps, locale.value)),
  ];
  if (percent && progress.fraction !== null && job.status !== 'succeeded') {
    parts.push(formatPercent(progress.fraction, locale.value));
  }
  const phase = phaseWord(progress.phase, t);
  if (job.status === 'running' && phase !== null && progress.phase !== 'train') parts.push(phase);
  else if (job.status === 'running' && progress.eta_s !== null) {
    parts.push(t.left(formatDuration(progress.eta_s, locale.value)));
  }
  return <span class="progress-text">{parts.join(' · ')}</span>;
}

function phaseWord(phase: string | null, t: Messages): string | null {
  const key = Object.entries(PHASES).find(([name]) => name === phase)?.[1];
  return key ? t[key] : phase;
}
