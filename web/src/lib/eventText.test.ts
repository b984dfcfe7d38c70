import { expect, test } from 'vitest';
import { eventText, reasonText } from './eventText';
import { en } from './messages';
import { zh } from './messages.zh';
import { whereText } from './where';

test('a known kind is a sentence in the language asked for', () => {
  const placed = { kind: 'placed', data: { attempt: 2, host: 'npu-07', devices: [0, 1, 3] } };
  expect(eventText(placed, en)).toEqual({ title: 'Attempt 2 placed on npu-07, cards 0–1, 3', detail: null });
  expect(eventText(placed, zh).title).toContain('npu-07');
});

test('cards that are simulated say so', () => {
  const data = { attempt: 1, host: 'sim', devices: [0], simulated: true };
  expect(eventText({ kind: 'placed', data }, en).title).toBe('Attempt 1 placed on sim, card 0 (simulated)');
  expect(eventText({ kind: 'placed', data }, zh).title).toContain('模拟');
  expect(whereText({ host: 'sim', devices: [0, 1], simulated: true }, en)).toBe(
    'sim · cards 0–1 (simulated)',
  );
  expect(whereText({ host: 'npu-07', devices: [0, 1], simulated: false }, en)).toBe('npu-07 · cards 0–1');
});

test('a card that a fault took out of service is named with why', () => {
  const data = { attempt: 1, host: 'npu-07', device: 3, why: 'rank 3 failed' };
  expect(eventText({ kind: 'device_cordoned', data }, en)).toEqual({
    title: 'Card 3 of npu-07 is out of service until somebody has looked at it',
    detail: 'rank 3 failed',
  });
  expect(eventText({ kind: 'device_wants_reset', data }, zh).title).toContain('复位');
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
