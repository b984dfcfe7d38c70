import { expect, test } from 'vitest';
import { vitalsOf } from './vitals';

test('what is known of a card is told, what is not is left out', () => {
  expect(vitalsOf({}, 'en')).toBe('');
  expect(vitalsOf({ health: 'ok', temperature_c: null }, 'en')).toBe('');
  const gib = 2 ** 30;
  const all = { health: 'warning', temperature_c: 61.4, utilization: 83, memory_used_bytes: 40 * gib };
  expect(vitalsOf({ ...all, memory_total_bytes: 64 * gib }, 'en')).toBe('warning · 61 °C · 83 % · 40/64 GiB');
  expect(vitalsOf({ ...all, memory_total_bytes: null }, 'en')).toBe('warning · 61 °C · 83 %');
});
