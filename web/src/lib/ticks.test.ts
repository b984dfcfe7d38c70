import { expect, test } from 'vitest';
import { logTicks } from './ticks';

test('one decade has lines between, several have one each', () => {
  expect(logTicks(15, 90)).toEqual([20, 50]);
  expect(logTicks(10, 1000)).toEqual([10, 20, 50, 100, 200, 500, 1000]);
  expect(logTicks(10, 100_000)).toEqual([10, 100, 1000, 10_000, 100_000]);
});

test('a range of a hundred decades still has few lines', () => {
  const ticks = logTicks(1e3, 1e107);
  expect(ticks.length).toBeGreaterThan(3);
  expect(ticks.length).toBeLessThan(8);
});
