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

test('the way to the first step names what took long, in the order it was gone', () => {
  const parts = { launch: 0.02, process: 0.001, imports: 3.126, first_step: 14.37 };
  expect(eventText({ kind: 'startup', data: { attempt: 1, parts } }, en)).toEqual({
    title: 'First step after 17.5 s',
    detail: 'imports 3.13 s · first step 14.4 s',
  });
  expect(eventText({ kind: 'startup', data: { attempt: 1 } }, en).detail).toBeNull();
});

test('a rank that hangs is named with its step, where it has one', () => {
  const data = { attempt: 1, rank: 1, step: 7, silence_s: 1800.2, stacks: ['a1/r0.stack', 'a1/r1.stack'] };
  expect(eventText({ kind: 'hung', data }, en)).toEqual({
    title: 'Rank 1 has stood still for 1800.2 s at step 7; every rank’s stack is kept',
    detail: 'a1/r0.stack, a1/r1.stack',
  });
  expect(eventText({ kind: 'hung', data: { ...data, step: null } }, en).title).not.toContain('step 7');
});

test('devices that are given up, and come back', () => {
  const data = { attempt: 1, devices: [0, 1] };
  expect(eventText({ kind: 'devices_quarantined', data }, en).title).toContain('cards 0–1 are out of use');
  expect(eventText({ kind: 'devices_freed', data: { ...data, devices: [3] } }, en).title).toContain(
    'card 3 is free again',
  );
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
