import { describe, expect, test } from 'vitest';
import { addPoints, align, emptySeries, lastValue, MAX_POINTS, thin, toLine, type Point } from './series';

const AT = '2026-01-01T00:00:00Z';

describe('addPoints', () => {
  test('keeps order and takes the newest value of a step that comes twice', () => {
    const first = addPoints(emptySeries, 1, [
      [10, 5, AT],
      [20, 4, AT],
    ]);
    const again = addPoints(first, 1, [
      [20, 4, AT],
      [15, 4.5, AT],
      [30, 3, AT],
    ]);
    expect(toLine(again)).toEqual({ steps: [10, 15, 20, 30], values: [5, 4.5, 4, 3], flagged: [] });
    expect(toLine(first).steps).toEqual([10, 20]);
  });

  test('a repeated step within one message counts once', () => {
    const series = addPoints(emptySeries, 1, [
      [1, 9, AT],
      [1, 8, AT],
    ]);
    expect(toLine(series)).toEqual({ steps: [1], values: [8], flagged: [] });
  });

  test('keeps NaN and infinities as flags', () => {
    const series = addPoints(emptySeries, 1, [
      [1, 2, AT],
      [2, null, AT, 'nan'],
      [3, null, AT, '-inf'],
    ]);
    const line = toLine(series);
    expect(line.values).toEqual([2, null, null]);
    expect(line.flagged).toEqual([
      { step: 2, flag: 'nan' },
      { step: 3, flag: '-inf' },
    ]);
    expect(lastValue(line)).toBe(2);
  });

  test('stays bounded and keeps the extremes', () => {
    let series = emptySeries;
    for (let step = 0; step < 3 * MAX_POINTS; step += 100) {
      const batch = Array.from({ length: 100 }, (_, i): [number, number, string] => [
        step + i,
        step + i === 777 ? -50 : (step + i) % 10,
        AT,
      ]);
      series = addPoints(series, 1, batch);
    }
    const line = toLine(series);
    expect(line.steps.length).toBeLessThanOrEqual(MAX_POINTS);
    expect(Math.min(...line.values.map((v) => v ?? 0))).toBe(-50);
    expect(line.steps.at(-1)).toBe(3 * MAX_POINTS - 1);
  });
});

describe('toLine', () => {
  test('the newest attempt wins for the steps it repeats, older ones stay outside', () => {
    let series = addPoints(emptySeries, 1, [
      [10, 1, AT],
      [20, 1, AT],
      [25, 1, AT],
      [30, 1, AT],
      [40, 1, AT],
    ]);
    series = addPoints(series, 2, [
      [20, 2, AT],
      [30, 2, AT],
    ]);
    expect(toLine(series)).toEqual({ steps: [10, 20, 30, 40], values: [1, 2, 2, 1], flagged: [] });
  });
});

test('thin keeps flagged points', () => {
  const points = Array.from({ length: 1000 }, (_, step): Point => ({
    step,
    value: step === 501 ? null : 1,
    flag: step === 501 ? 'nan' : null,
  }));
  const kept = thin(points, 100);
  expect(kept.length).toBeLessThanOrEqual(101);
  expect(kept.some((point) => point.step === 501)).toBe(true);
});

test('align puts lines with different steps on one axis', () => {
  const a = { steps: [1, 3], values: [10, 30], flagged: [] };
  const b = { steps: [2, 3], values: [null, 31], flagged: [] };
  expect(align([a, b])).toEqual({
    steps: [1, 2, 3],
    columns: [
      [10, undefined, 30],
      [undefined, null, 31],
    ],
  });
});
