// Numbers, durations and dates for people, in their language.

export type Locale = 'en' | 'zh';

const LOCALES: Record<Locale, string> = { en: 'en', zh: 'zh-CN' };
const UNITS = [
  ['day', 86_400],
  ['hour', 3_600],
  ['minute', 60],
  ['second', 1],
] as const;

const formats = new Map<string, Intl.NumberFormat>();

/** A measured value: about four digits, exponents only at the extremes. */
export function formatNumber(value: number, locale: Locale): string {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2).replace('e+', 'e');
  if (size < 0.1) return numberFormat(locale, { maximumSignificantDigits: 3 }).format(value);
  const digits = size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : 3;
  return numberFormat(locale, { maximumFractionDigits: digits }).format(value);
}

/** The same, always as many digits: a value that changes while one looks at it must not change its width. */
export function formatMeasure(value: number, locale: Locale): string {
  const size = Math.abs(value);
  if (size < 0.1 || size >= 1000) return formatNumber(value, locale);
  const digits = size >= 100 ? 1 : size >= 10 ? 2 : 3;
  return numberFormat(locale, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);
}

/** A value on a chart's axis: short enough for its gutter. */
export function formatAxis(value: number, locale: Locale): string {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e15)) return value.toExponential(0).replace('e+', 'e');
  return numberFormat(locale, { notation: 'compact', maximumSignificantDigits: 3 }).format(value);
}

export function formatCount(value: number, locale: Locale): string {
  return numberFormat(locale, { maximumFractionDigits: 0 }).format(value);
}

export function formatPercent(fraction: number, locale: Locale): string {
  // A job that is not done never reads 100 %.
  const shown = fraction < 1 ? Math.min(fraction, 0.99) : 1;
  return numberFormat(locale, { style: 'percent', maximumFractionDigits: 0 }).format(shown);
}

/** The two largest units of a duration in seconds: "2 min 5 sec", "3 hr". */
export function formatDuration(seconds: number, locale: Locale): string {
  const whole = Math.max(0, Math.round(seconds));
  const first = UNITS.findIndex(([, size]) => whole >= size);
  const index = first === -1 ? UNITS.length - 1 : first;
  const [unit, size] = UNITS[index] ?? ['second', 1];
  const parts = [unitText(Math.floor(whole / size), unit, locale)];
  const next = UNITS[index + 1];
  const rest = next ? Math.floor((whole % size) / next[1]) : 0;
  if (next && rest > 0) parts.push(unitText(rest, next[0], locale));
  return parts.join(locale === 'zh' ? '' : ' ');
}

/** How long ago, in one unit: "3 min. ago". Two clocks may differ, so nothing that has happened lies in the future. */
export function formatAge(at: string, now: number, locale: Locale): string {
  return relative(-Math.max(0, now - Date.parse(at)), locale);
}

/** How soon, in one unit, rounded: "in 20 min."; what is due is "now". */
export function formatUntil(at: string, now: number, locale: Locale): string {
  const [, size, count] = leftUntil(at, now);
  return relative(count * size * 1000, locale);
}

/** The same as a length of time, to stand in a sentence: "20 min"; null for what is due. */
export function formatLeft(at: string, now: number, locale: Locale): string | null {
  const [unit, , count] = leftUntil(at, now);
  return count === 0 ? null : unitText(count, unit, locale);
}

export function formatDateTime(at: string, locale: Locale): string {
  return new Intl.DateTimeFormat(LOCALES[locale], { dateStyle: 'medium', timeStyle: 'medium' }).format(
    new Date(at),
  );
}

/** The time of day; with the day in place of the seconds where that is another one. */
export function formatTime(at: string, now: number, locale: Locale): string {
  const date = new Date(at);
  const options: Intl.DateTimeFormatOptions =
    date.toDateString() === new Date(now).toDateString()
      ? { hour: '2-digit', minute: '2-digit', second: '2-digit' }
      : { month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit' };
  return new Intl.DateTimeFormat(LOCALES[locale], { ...options, hourCycle: 'h23' }).format(date);
}

/** Cards as people write them: [0, 1, 2, 5] is "0–2, 5". */
export function formatRanges(indices: readonly number[]): string {
  const sorted = [...indices].sort((a, b) => a - b);
  const runs: [number, number][] = [];
  for (const index of sorted) {
    const run = runs.at(-1);
    if (run && index === run[1] + 1) run[1] = index;
    else runs.push([index, index]);
  }
  return runs.map(([from, to]) => (from === to ? String(from) : `${from}–${to}`)).join(', ');
}

function relative(milliseconds: number, locale: Locale): string {
  const seconds = milliseconds / 1000;
  const [unit, size] = unitOf(seconds);
  const format = new Intl.RelativeTimeFormat(LOCALES[locale], { style: 'short', numeric: 'auto' });
  return format.format(Math.trunc(seconds / size), unit);
}

/** The unit, its length in seconds, and how many of it are left, rounded. */
function leftUntil(at: string, now: number) {
  const seconds = Math.max(0, Date.parse(at) - now) / 1000;
  const [unit, size] = unitOf(seconds);
  return [unit, size, Math.round(seconds / size)] as const;
}

const unitOf = (seconds: number) =>
  UNITS.find(([, length]) => Math.abs(seconds) >= length) ?? (['second', 1] as const);

function unitText(value: number, unit: string, locale: Locale): string {
  return numberFormat(locale, { style: 'unit', unit, unitDisplay: 'short' }).format(value);
}

function numberFormat(locale: Locale, options: Intl.NumberFormatOptions): Intl.NumberFormat {
  const key = locale + JSON.stringify(options);
  let format = formats.get(key);
  if (!format) {
    format = new Intl.NumberFormat(LOCALES[locale], options);
    formats.set(key, format);
  }
  return format;
}
