import { expect, test } from 'vitest';
import { eventText, reasonText } from './eventText';
import { en } from './messages';
import { zh } from './messages.zh';

test('a known kind is a sentence in the language asked for', () => {
  const placed = { kind: 'placed', data: { attempt: 2, host: 'npu-07', devices: [0, 1, 3] } };
  expect(eventText(placed, en)).toEqual({ title: 'Attempt 2 placed on npu-07, cards 0–1, 3', detail: null });
  expect(eventText(placed, zh).title).toContain('npu-07');
});

test('a closed attempt tells why, and its message', () => {
  const data = { attempt: 1, exit_reason: 'out_of_memory', message: 'rank 1: no memory', failing_rank: 1 };
  expect(eventText({ kind: 'attempt_closed', data }, en)).toEqual({
    title: 'Attempt 1 ended: out of memory',
    detail: 'rank 1: no memory',
  });
});

test('a status is the word the table uses', () => {
  expect(eventText({ kind: 'status', data: { status: 'failed', reason: 'why' } }, en)).toEqual({
    title: 'Failed',
    detail: 'why',
  });
  expect(eventText({ kind: 'status', data: { status: 'constructor', reason: null } }, en).title).toBe(
    'constructor',
  );
});

test('what is not known is shown as it came', () => {
  expect(
    eventText({ kind: 'new_kind', data: { some_thing: [1, 'a'], none: null, deep: { x: 1 } } }, en),
  ).toEqual({
    title: 'new kind',
    detail: 'some thing 1, a · deep {"x":1}',
  });
  expect(reasonText('brand_new', en)).toBe('brand new');
});
