// How uPlot draws a chart of ours: colours from the style sheet, marks for NaN, one crosshair over all charts of the page.
import uPlot from 'uplot';
import { logTicks } from '../lib/ticks';
import { formatAxis, formatCount, type Locale } from '../lib/format';

export interface PlotOptions {
  /** Whether the values stand on a logarithmic scale. */
  log: boolean;
  locale: Locale;
  /** The step under the pointer, or null when it leaves. */
  onStep: (step: number | null) => void;
}

export interface Table {
  data: uPlot.AlignedData;
  /** The last step that any chart of the page knows, so that all of them show the same stretch. */
  lastStep: number;
  /** Steps whose value is NaN or infinite. */
  flags: number[];
}

export interface Plot {
  update: (table: Table) => void;
  destroy: () => void;
}

const HEIGHT = 220;
const CROSSHAIR = 'charts';
const SPARSE = 40;

// uPlot's own enums are types only.
const LINEAR = 1;
const LOGARITHMIC = 3;

export function drawChart(box: HTMLElement, numLines: number, options: PlotOptions): Plot {
  let flags: number[] = [];
  let lastStep = 0;
  let pending: Table | null = null;
  let frame = 0;
  const bad = inkOf(box, 'ink-bad');
  const plot = new uPlot(
    {
      width: box.clientWidth,
      height: HEIGHT,
      legend: { show: false },
      padding: [12, 12, 0, 0],
      cursor: {
        sync: { key: CROSSHAIR, scales: ['x', null] },
        points: { size: 7 },
        drag: { x: true, y: false },
      },
      scales: { x: { time: false }, y: { distr: options.log ? LOGARITHMIC : LINEAR } },
      axes: axesOf(box, options),
      series: [{}, ...Array.from({ length: numLines }, (_, index) => seriesOf(box, index))],
      hooks: {
        setCursor: [(self) => options.onStep(stepUnder(self))],
        draw: [(self) => markFlags(self, flags, bad)],
      },
    },
    [[]],
    box,
  );
  const resize = new ResizeObserver(() => plot.setSize({ width: box.clientWidth, height: HEIGHT }));
  resize.observe(box);

  const paint = (): void => {
    frame = 0;
    if (!pending) return;
    const zoomed = isZoomed(plot, lastStep);
    ({ flags, lastStep } = pending);
    plot.batch(() => {
      plot.setData(pending?.data ?? [[]], false);
      if (!zoomed) plot.setScale('x', { min: 0, max: Math.max(lastStep, 1) });
      else plot.redraw();
    });
    pending = null;
  };
  return {
    // Messages may come in bursts; a frame draws the newest only.
    update: (table) => {
      pending = table;
      frame ||= requestAnimationFrame(paint);
    },
    destroy: () => {
      cancelAnimationFrame(frame);
      resize.disconnect();
      plot.destroy();
    },
  };
}

function axesOf(box: HTMLElement, { locale, log }: PlotOptions): uPlot.Axis[] {
  const common = {
    stroke: inkOf(box, 'ink-axis'),
    font: `11px ${getComputedStyle(box).fontFamily}`,
    ticks: { show: false },
  };
  const steps: uPlot.Axis = {
    ...common,
    grid: { show: false },
    size: 28,
    values: (_, ticks) => ticks.map((tick) => wholeStep(tick, locale)),
  };
  const values: uPlot.Axis = {
    ...common,
    grid: { stroke: inkOf(box, 'ink-grid'), width: 1 },
    size: 48,
    space: 36,
    values: (_, ticks) => ticks.map((tick) => formatAxis(tick, locale)),
    ...(log
      ? { splits: (_self, _axis, min, max) => logTicks(min, max), filter: (_self, ticks) => ticks }
      : {}),
  };
  return [steps, values];
}

function seriesOf(box: HTMLElement, index: number): uPlot.Series {
  return {
    stroke: inkOf(box, `ink-${index}`),
    width: 1.75,
    spanGaps: false,
    // A line of few points shows where they are; one of a single point would show nothing else.
    points: { size: 5, show: (self, series) => isSparse(self.data[series] ?? []) },
  };
}

/** Canvas needs a plain colour, so let the style sheet resolve one for this theme. */
function inkOf(box: HTMLElement, className: string): string {
  const probe = document.createElement('span');
  probe.className = className;
  box.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}

function stepUnder(plot: uPlot): number | null {
  const index = plot.cursor.idx;
  return typeof index === 'number' ? (plot.data[0][index] ?? null) : null;
}

function isSparse(values: ArrayLike<number | null | undefined>): boolean {
  let count = 0;
  for (let index = 0; index < values.length && count <= SPARSE; index++) if (values[index] != null) count++;
  return count <= SPARSE;
}

/** Whether a person chose a stretch of steps; a double click gives the whole line back. */
function isZoomed(plot: uPlot, lastStep: number): boolean {
  const steps = plot.data[0];
  const { min, max } = plot.scales['x'] ?? {};
  if (min == null || max == null) return false;
  const isWhole = min === 0 && max === Math.max(lastStep, 1);
  const isReset = min === steps[0] && max === steps[steps.length - 1];
  return !isWhole && !isReset;
}

/** A value that has no height stands as a small triangle on the top edge, at its step. */
function markFlags(plot: uPlot, flags: readonly number[], colour: string): void {
  const { ctx, bbox } = plot;
  const size = 5 * devicePixelRatio;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, 0, bbox.width, bbox.top + bbox.height);
  ctx.clip();
  ctx.fillStyle = colour;
  for (const step of flags) {
    const x = plot.valToPos(step, 'x', true);
    ctx.beginPath();
    ctx.moveTo(x - size, bbox.top - size);
    ctx.lineTo(x + size, bbox.top - size);
    ctx.lineTo(x, bbox.top + size * 0.6);
    ctx.fill();
  }
  ctx.restore();
}

const wholeStep = (tick: number, locale: Locale): string =>
  Number.isInteger(tick) ? formatCount(tick, locale) : '';
