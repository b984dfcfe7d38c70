// How far a job is: a bar, its step, and the time that is left.
import type { Job, Progress } from '../api/types';
import { formatCount, formatDuration, formatPercent } from '../lib/format';
import { isTerminal } from '../lib/jobList';
import type { Messages } from '../lib/messages';
import { locale, messages } from '../state/preferences';

const PHASES = {
  load: 'phase_load',
  train: 'phase_train',
  evaluate: 'phase_evaluate',
  save: 'phase_save',
  end: 'phase_end',
} as const satisfies Record<string, keyof Messages>;

const NO_PROGRESS: Progress = { step: null, total_steps: null, fraction: null, eta_s: null, phase: null };

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

/** "step 40 of 300 · 13% · 2 min left", of which what is known; once it is over, "300 steps · took 3 min". */
export function ProgressText({ job, percent = true }: { job: Job; percent?: boolean }) {
  const parts = isTerminal(job.status) ? partsAtEnd(job) : partsUnderWay(job, percent);
  return <span class="progress-text">{parts.join(' · ')}</span>;
}

function partsUnderWay(job: Job, percent: boolean): string[] {
  const t = messages.value;
  const { step, total_steps: total, fraction, eta_s: eta, phase } = job.progress ?? NO_PROGRESS;
  const parts: string[] = [];
  const position = job.wait?.position ?? null;
  if (job.status === 'queued' && position !== null)
    parts.push(t.position(formatCount(position, locale.value)));
  if (step !== null) {
    const count = formatCount(step, locale.value);
    parts.push(total === null ? t.step(count) : t.step_of(count, formatCount(total, locale.value)));
  }
  if (percent && fraction !== null) parts.push(formatPercent(fraction, locale.value));
  if (job.status !== 'running') return parts;
  const word = phase === 'train' ? null : phaseWord(phase, t);
  if (word !== null) parts.push(word);
  else if (eta !== null) parts.push(t.left(formatDuration(eta, locale.value)));
  return parts;
}

function partsAtEnd(job: Job): string[] {
  const t = messages.value;
  const parts: string[] = [];
  const step = job.progress?.step ?? null;
  const total = job.progress?.total_steps ?? null;
  if (step !== null && total !== null && step < total) {
    parts.push(t.step_of(formatCount(step, locale.value), formatCount(total, locale.value)));
  } else if (step !== null) parts.push(t.steps(formatCount(step, locale.value)));
  if (job.started_at !== null && job.finished_at !== null) {
    const seconds = (Date.parse(job.finished_at) - Date.parse(job.started_at)) / 1000;
    parts.push(t.took_time(formatDuration(seconds, locale.value)));
  }
  return parts;
}

function phaseWord(phase: string | null, t: Messages): string | null {
  const key = Object.entries(PHASES).find(([name]) => name === phase)?.[1];
  return key ? t[key] : phase;
}
