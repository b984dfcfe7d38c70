// One rank's log as lines, put together from byte ranges that may overlap, repeat or be cut anywhere.
import type { LogMessage } from '../api/types';

export interface LogText {
  attempt: number;
  rank: number;
  /** Byte of the raw log after the last one held. */
  end: number;
  /** The last line is still open while `open` is true. */
  lines: readonly string[];
  open: boolean;
  /** Lines that were held once and were let go, so that lines[i] is line `dropped + i`. */
  dropped: number;
  /** Characters in `lines`. */
  size: number;
  /** Byte of the first line ever held; above 0 the log has an earlier part on the server. */
  start: number;
}

export const MAX_LINES = 20_000;
export const MAX_CHARS = 16_000_000;

/** What goes at once where a bound is passed, so that it is not passed at every line. */
const TRIM = 0.1;

export function emptyLog(attempt: number, rank: number, start = 0): LogText {
  return { attempt, rank, start, end: start, lines: [], open: false, dropped: 0, size: 0 };
}

/** The log with a byte range added; 'gap' when bytes between are missing or cannot be told apart: read from `log.end`. */
export function append(log: LogText, message: LogMessage): LogText | 'gap' {
  if (message.attempt !== log.attempt || message.rank !== log.rank || message.end <= log.end) return log;
  if (message.offset > log.end) return 'gap';
  const text = message.offset === log.end ? message.text : afterByte(message, log.end);
  if (text === null) return 'gap';
  return { ...trim(addText(log, text)), end: message.end };
}

/** The log as a slice from the server begins it. A slice that starts mid-log may start mid-line; it is shown as it is. */
export function fromSlice(slice: LogMessage): LogText {
  const log = emptyLog(slice.attempt, slice.rank, slice.offset);
  return { ...trim(addText(log, slice.text)), end: Math.max(slice.end, slice.offset) };
}

/** The log with a line that tells of bytes that the server no longer has. */
export function skipTo(log: LogText, offset: number, notice: string): LogText {
  const closed = log.open ? addText(log, '\n') : log;
  return { ...addText(closed, `${notice}\n`), end: offset };
}

function addText(log: LogText, text: string): LogText {
  if (text === '') return log;
  const parts = text.split('\n');
  const open = parts.at(-1) !== '';
  if (!open) parts.pop();
  const whole = log.open ? log.lines.slice(0, -1) : log.lines;
  if (log.open) parts[0] = `${log.lines.at(-1) ?? ''}${parts[0] ?? ''}`;
  return { ...log, lines: whole.concat(parts), open, size: log.size + text.length };
}

function trim(log: LogText): LogText {
  if (log.lines.length <= MAX_LINES && log.size <= MAX_CHARS) return log;
  const keepLines = MAX_LINES * (1 - TRIM);
  const keepChars = MAX_CHARS * (1 - TRIM);
  let { size } = log;
  let gone = 0;
  while (gone < log.lines.length - 1 && (log.lines.length - gone > keepLines || size > keepChars)) {
    size -= (log.lines[gone]?.length ?? 0) + 1;
    gone++;
  }
  return { ...log, lines: log.lines.slice(gone), dropped: log.dropped + gone, size };
}

/** The part of a range after a byte; null when its text is not byte for byte what the log held (replaced characters). */
function afterByte(message: LogMessage, byte: number): string | null {
  const bytes = new TextEncoder().encode(message.text);
  if (bytes.length !== message.end - message.offset) return null;
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes.subarray(byte - message.offset));
  } catch {
    return null;
  }
}
