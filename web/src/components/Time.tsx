// Points and stretches of time that keep up with the clock.
import { formatAge, formatDateTime, formatDuration, formatUntil } from '../lib/format';
import { now } from '../state/clock';
import { locale } from '../state/preferences';

export function Age({ at }: { at: string }) {
  return (
    <time dateTime={at} title={formatDateTime(at, locale.value)}>
      {formatAge(at, now.value, locale.value)}
    </time>
  );
}

export function Until({ at }: { at: string }) {
  return (
    <time dateTime={at} title={formatDateTime(at, locale.value)}>
      {formatUntil(at, now.value, locale.value)}
    </time>
  );
}

/** From one time to another, or to now while the other is open. */
export function Elapsed({ from, to }: { from: string; to: string | null }) {
  const end = to === null ? now.value : Date.parse(to);
  return <span class="num">{formatDuration((end - Date.parse(from)) / 1000, locale.value)}</span>;
}
