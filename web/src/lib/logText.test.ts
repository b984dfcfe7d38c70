import { describe, expect, test } from 'vitest';
import type { LogMessage } from '../api/types';
import { append, emptyLog, fromSlice, MAX_CHARS, MAX_LINES, skipTo, type LogText } from './logText';

const bytes = (text: string): number => new TextEncoder().encode(text).length;
const range = (offset: number, text: string, length = bytes(text)): LogMessage => ({
  attempt: 1,
  rank: 0,
  offset,
  end: offset + length,
  text,
});

function joined(log: LogText, ...messages: LogMessage[]): LogText {
  return messages.reduce((held, message) => {
    const next = append(held, message);
    if (next === 'gap') throw new Error('gap');
    return next;
  }, log);
}

describe('append', () => {
  test('joins lines that were cut between two ranges', () => {
    const log = joined(emptyLog(1, 0), range(0, 'one\ntw'), range(6, 'o\nthree'));
    expect(log.lines).toEqual(['one', 'two', 'three']);
    expect(log.open).toBe(true);
    expect(joined(log, range(13, '\n')).lines).toEqual(['one', 'two', 'three']);
    expect(joined(log, range(13, '\n')).open).toBe(false);
  });

  test('keeps empty lines', () => {
    expect(joined(emptyLog(1, 0), range(0, 'a\n\n'), range(3, '\nb\n')).lines).toEqual(['a', '', '', 'b']);
  });

  test('drops what it has, and cuts what overlaps at a byte of several', () => {
    const log = joined(emptyLog(1, 0), range(0, 'é\n'));
    expect(append(log, range(0, 'é\n'))).toBe(log);
    expect(joined(log, range(0, 'é\nü\n')).lines).toEqual(['é', 'ü']);
  });

  test('asks for bytes it lacks, and where it cannot cut', () => {
    const log = joined(emptyLog(1, 0), range(0, 'a\n'));
    expect(append(log, range(5, 'b\n'))).toBe('gap');
    expect(append(log, range(0, '\ufffd\nb\n', 4))).toBe('gap');
  });

  test('leaves other ranks and attempts out', () => {
    const log = emptyLog(1, 0);
    expect(append(log, { ...range(0, 'x\n'), rank: 1 })).toBe(log);
    expect(append(log, { ...range(0, 'x\n'), attempt: 2 })).toBe(log);
  });

  test('lets the oldest lines go and counts them', () => {
    const text = 'x\n'.repeat(20 * MAX_LINES);
    const log = joined(emptyLog(1, 0), range(0, text), range(text.length, 'y\n'));
    expect(log.lines.length).toBeLessThanOrEqual(MAX_LINES);
    expect(log.dropped + log.lines.length).toBe(20 * MAX_LINES + 1);
    expect(log.lines.at(-1)).toBe('y');
  });
});

test('a few very long lines are bounded as well', () => {
  const line = `${'x'.repeat(MAX_CHARS / 4)}\n`;
  let log = emptyLog(1, 0);
  for (let n = 0; n < 8; n++) log = joined(log, range(n * line.length, line, line.length));
  expect(log.lines.length).toBeLessThan(5);
  expect(log.size).toBe(log.lines.reduce((sum, one) => sum + one.length + 1, 0));
  expect(log.dropped + log.lines.length).toBe(8);
});

test('a slice from the middle is followed from its end', () => {
  const log = fromSlice(range(100, 'tail\n'));
  expect(log).toMatchObject({ start: 100, end: 105, lines: ['tail'] });
  expect(joined(log, range(105, 'more\n')).lines).toEqual(['tail', 'more']);
});

test('a hole is told and closes an open line', () => {
  const log = skipTo(joined(emptyLog(1, 0), range(0, 'cut')), 900, '[hole]');
  expect(log.lines).toEqual(['cut', '[hole]']);
  expect(joined(log, range(900, 'on\n')).lines).toEqual(['cut', '[hole]', 'on']);
});
