// A metric's points over attempts: merging what arrives, and the one line that a chart draws.
import type { MetricPoint } from '../api/types';

export type Flag = 'nan' | 'inf' | '-inf';

export interface Point {
  step: number;
  /** null where the value is NaN or infinite; `flag` says which. */
  value: number | null;
  flag: Flag | null;
}

/** Points of one metric name by attempt, each list in order of steps, a step once. */
export type Series = ReadonlyMap<number, readonly Point[]>;

export interface Line {
  steps: number[];
  values: (number | null)[];
  flagged: { step: number; flag: Flag }[];
}

/** What one attempt keeps in the browser; a page may stay open for days. */
export const MAX_POINTS = 4000;

export const emptySeries: Series = new Map();

/** The series with an attempt's points added; a step that is already there takes the new value. */
export function addPoints(series: Series, attempt: number, incoming: readonly MetricPoint[]): Series {
  if (incoming.length === 0) return series;
  const points = incoming.map(toPoint).sort((a, b) => a.step - b.step);
  const merged = mergePoints(series.get(attempt) ?? [], points);
  const next = new Map(series);
  next.set(attempt, merged.length > MAX_POINTS ? thin(merged, MAX_POINTS / 2) : merged);
  return next;
}

/** The line to draw: a newer attempt owns the stretch of steps that it has reported. */
export function toLine(series: Series): Line {
  let kept: Point[] = [];
  for (const attempt of [...series.keys()].sort((a, b) => b - a)) {
    const points = series.get(attempt) ?? [];
    const first = kept[0];
    const last = kept.at(-1);
    if (!first || !last) {
      kept = [...points];
      continue;
    }
    const before = points.filter((point) => point.step < first.step);
    const after = points.filter((point) => point.step > last.step);
    kept = [...before, ...kept, ...after];
  }
  const flagged = kept.flatMap(({ step, flag }) => (flag ? [{ step, flag }] : []));
  return { steps: kept.map((point) => point.step), values: kept.map((point) => point.value), flagged };
}

/** At most about `max` points; each bucket keeps its lowest and highest point, and every flagged one stays. */
export function thin(points: readonly Point[], max: number): Point[] {
  if (points.length <= max) return [...points];
  const size = Math.ceil((points.length * 2) / max);
  const kept: Point[] = [];
  for (let start = 0; start < points.length; start += size) {
    const bucket = points.slice(start, start + size);
    const finite = bucket.filter((point) => point.value !== null);
    const lowest = finite.reduce<Point | null>((a, b) => (a && value(a) <= value(b) ? a : b), null);
    const highest = finite.reduce<Point | null>((a, b) => (a && value(a) >= value(b) ? a : b), null);
    kept.push(...bucket.filter((point) => point === lowest || point === highest || point.flag));
  }
  return kept;
}

/** The greatest step that any attempt has reported; 0 where there is none. */
export function lastStepOf(series: Series): number {
  return Math.max(0, ...[...series.values()].map((points) => points.at(-1)?.step ?? 0));
}

/** The newest finite value of a line, or null. */
export function lastValue(line: Line): number | null {
  return line.values.findLast((entry) => entry !== null) ?? null;
}

/** One table over several lines: the union of their steps and, for each line, its values there. */
export function align(lines: readonly Line[]): { steps: number[]; columns: (number | null | undefined)[][] } {
  const only = lines.length === 1 ? lines[0] : undefined;
  if (only) return { steps: only.steps, columns: [only.values] };
  const steps = [...new Set(lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
  const columns = lines.map((line) => {
    const byStep = new Map(line.steps.map((step, index) => [step, line.values[index]]));
    return steps.map((step) => byStep.get(step));
  });
  return { steps, columns };
}

const value = (point: Point): number => point.value ?? Number.NaN;

function toPoint([step, value, , flag]: MetricPoint): Point {
  return { step, value, flag: flag ?? null };
}

function mergePoints(old: readonly Point[], incoming: readonly Point[]): Point[] {
  const last = old.at(-1);
  const first = incoming[0];
  if (!last || (first && first.step > last.step && isStrictlyRising(incoming)))
    return dedupe([...old, ...incoming]);
  const byStep = new Map([...old, ...incoming].map((point) => [point.step, point]));
  return [...byStep.values()].sort((a, b) => a.step - b.step);
}

function isStrictlyRising(points: readonly Point[]): boolean {
  return points.every((point, index) => index === 0 || point.step > (points[index - 1]?.step ?? 0));
}

function dedupe(points: Point[]): Point[] {
  return points.filter((point, index) => points[index + 1]?.step !== point.step);
}
