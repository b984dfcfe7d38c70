// An event of a job as a sentence for people; a kind that is not known here is shown as it came.
import type { JobEvent } from '../api/types';
import { formatRanges } from './format';
import { STATUSES } from './jobList';
import type { Messages } from './messages';

export interface EventText {
  title: string;
  detail: string | null;
}

type Data = JobEvent['data'];

export function eventText(event: Pick<JobEvent, 'kind' | 'data'>, t: Messages): EventText {
  const tell = TELL.get(event.kind);
  return tell ? tell(event.data, t) : { title: words(event.kind), detail: summary(event.data) };
}

/** An attempt's exit reason in words; one that is not known here as it came. */
export function reasonText(reason: string, t: Messages): string {
  return new Map(Object.entries(t.exit_reasons)).get(reason) ?? words(reason);
}

const TELL = new Map<string, (data: Data, t: Messages) => EventText>(
  Object.entries({
    submitted: (data, t) => ({ title: t.event_submitted(text(data['owner'])), detail: null }),
    placed: (data, t) => {
      const title = t.event_placed(text(data['attempt']), text(data['host']), cards(data['devices']));
      return { title: data['simulated'] === true ? t.simulated_cards(title) : title, detail: null };
    },
    device_cordoned: (data, t) => ({
      title: t.event_device_cordoned(text(data['device']), text(data['host'])),
      detail: text(data['why']) || null,
    }),
    device_wants_reset: (data, t) => ({
      title: t.event_device_wants_reset(text(data['device']), text(data['host'])),
      detail: text(data['why']) || null,
    }),
    attempt_started: (data, t) => ({ title: t.event_attempt_started(text(data['attempt'])), detail: null }),
    attempt_closed: (data, t) => {
      const reason = reasonText(text(data['exit_reason']), t);
      const message = text(data['message']);
      return {
        title: t.event_attempt_closed(text(data['attempt']), reason),
        detail: message === reason ? null : message || null,
      };
    },
    status: (data, t) => ({
      title: statusWord(text(data['status']), t),
      detail: data['reason'] === data['status'] ? null : text(data['reason']) || null,
    }),
    checkpoint: (data, t) => ({ title: t.event_checkpoint(text(data['step'])), detail: null }),
    checkpoint_corrupt: (data, t) => ({
      title: t.event_checkpoint_corrupt(text(data['step'])),
      detail: null,
    }),
    checkpoint_missing: (data, t) => ({
      title: t.event_checkpoint_missing(text(data['step'])),
      detail: text(data['dir']) || null,
    }),
    resuming: (data, t) => ({ title: t.event_resuming, detail: text(data['dir']) || null }),
    cancel_requested: (_, t) => ({ title: t.event_cancel_requested, detail: null }),
    pause_requested: (_, t) => ({ title: t.event_pause_requested, detail: null }),
    resume_requested: (_, t) => ({ title: t.event_resume_requested, detail: null }),
    retry_requested: (_, t) => ({ title: t.event_retry_requested, detail: null }),
    preempt_requested: (data, t) => ({ title: t.event_preempt_requested, detail: text(data['why']) || null }),
    log_dropped: (data, t) => ({
      title: t.event_log_dropped(text(data['rank']), text(data['num_bytes'])),
      detail: null,
    }),
    log_capped: (data, t) => ({ title: t.event_log_capped(text(data['rank'])), detail: null }),
    metrics_skipped: (data, t) => ({ title: t.event_metrics_skipped(text(data['lines'])), detail: null }),
    metrics_dropped: (data, t) => ({ title: t.event_metrics_dropped(text(data['names'])), detail: null }),
    ingest_failed: (_, t) => ({ title: t.event_ingest_failed, detail: null }),
    checkpoint_refused: (data, t) => ({
      title: t.event_checkpoint_refused,
      detail: text(data['dir']) || null,
    }),
    startup: (data, t) => startUp(data['parts'], t),
    hung: (data, t) => ({
      title: t.event_hung(text(data['rank']), text(data['silence_s']), text(data['step'])),
      detail: text(data['stacks']) || null,
    }),
    devices_quarantined: (data, t) => ({
      title: t.event_devices_quarantined(cards(data['devices'])),
      detail: null,
    }),
    devices_freed: (data, t) => ({ title: t.event_devices_freed(cards(data['devices'])), detail: null }),
  } satisfies Record<string, (data: Data, t: Messages) => EventText>),
);

/** The way from the launch to the first step: its length, and what took a part of it that is worth reading. */
function startUp(parts: unknown, t: Messages): EventText {
  const all = Object.entries(parts ?? {}).filter(
    (one): one is [string, number] => typeof one[1] === 'number',
  );
  const total = all.reduce((sum, [, seconds]) => sum + seconds, 0);
  const long = all.filter(([, seconds]) => seconds >= 0.01 * total);
  const detail = long.map(([name, seconds]) => `${words(name)} ${t.seconds(tenths(seconds))}`);
  return { title: t.event_startup(t.seconds(tenths(total))), detail: detail.join(' · ') || null };
}

function statusWord(status: string, t: Messages): string {
  const known = STATUSES.find((one) => one === status);
  return known ? t[known] : words(status);
}

const tenths = (seconds: number): string => seconds.toFixed(seconds < 10 ? 2 : 1);

const words = (name: string): string => name.replaceAll('_', ' ');

const cards = (value: unknown): string =>
  Array.isArray(value) ? formatRanges(value.filter((index) => typeof index === 'number')) : '';

function summary(data: Data): string | null {
  const entries = Object.entries(data).filter(([, value]) => text(value) !== '');
  return entries.map(([key, value]) => `${words(key)} ${text(value)}`).join(' · ') || null;
}

function text(value: unknown): string {
  if (value === null || value === undefined) return '';
  if (typeof value === 'string') return value;
  if (Array.isArray(value)) return value.map(text).join(', ');
  return JSON.stringify(value);
}
