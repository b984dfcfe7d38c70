// How uPlot draws a chart of ours: colours from the style sheet, marks for NaN, one crosshair over all charts of the page.
import uPlot from 'uplot';
import { formatAxis, formatCount, type Locale } from '../lib/format';

export interface PlotTrack {
  label: string;
  side?: 'left' | 'right';
}

export interface PlotOptions {
  log: boolean;
  locale: Locale;
  /** The step under the pointer, or null when it leaves. */
  onStep: (step: number | null) => void;
}

export interface Plot {
  update: (table: { data: uPlot.AlignedData; flags: number[] }) => void;
  destroy: () => void;
}

const HEIGHT = 220;
const CROSSHAIR = 'charts';

// uPlot's own enums are types only.
const LINEAR = 1;
const LOGARITHMIC = 3;
const RIGHT = 1;

export function drawChart(box: HTMLElement, tracks: readonly PlotTrack[], options: PlotOptions): Plot {
  let flags: number[] = [];
  let pending: uPlot.AlignedData | null = null;
  let frame = 0;
  const plot = new uPlot(
    {
      width: box.clientWidth,
      height: HEIGHT,
      legend: { show: false },
      padding: [12, tracks.some((track) => track.side === 'right') ? 0 : 12, 0, 0],
      cursor: { sync: { key: CROSSHAIR }, points: { size: 7 }, drag: { x: true, y: false } },
      scales: {
        x: { time: false },
        left: { distr: options.log ? LOGARITHMIC : LINEAR },
        right: {},
      },
      axes: axesOf(box, tracks, options),
      series: [{}, ...tracks.map((track, index) => seriesOf(box, track, index))],
      hooks: {
        setCursor: [(self) => options.onStep(stepUnder(self))],
        draw: [(self) => markFlags(self, flags, inkOf(box, 'ink-bad'))],
      },
    },
    [[]],
    box,
  );
  const resize = new ResizeObserver(() => plot.setSize({ width: box.clientWidth, height: HEIGHT }));
  resize.observe(box);

  const paint = (): void => {
    frame = 0;
    if (pending) plot.setData(pending, !isZoomed(plot));
    pending = null;
  };
  return {
    // Messages may come in bursts; a frame draws the newest only.
    update: (table) => {
      flags = table.flags;
      pending = table.data;
      frame ||= requestAnimationFrame(paint);
    },
    destroy: () => {
      cancelAnimationFrame(frame);
      resize.disconnect();
      plot.destroy();
    },
  };
}

function axesOf(box: HTMLElement, tracks: readonly PlotTrack[], { locale, log }: PlotOptions): uPlot.Axis[] {
  const font = `11px ${getComputedStyle(box).fontFamily}`;
  const common = {
    stroke: inkOf(box, 'ink-axis'),
    font,
    ticks: { show: false },
    grid: { stroke: inkOf(box, 'ink-grid'), width: 1 },
  };
  const values = (_: uPlot, ticks: (number | null)[]): string[] =>
    ticks.map((tick) => (tick === null ? '' : formatAxis(tick, locale)));
  const axes: uPlot.Axis[] = [
    {
      ...common,
      grid: { show: false },
      size: 28,
      values: (_, ticks) => ticks.map((tick) => wholeStep(tick, locale)),
    },
    { ...common, scale: 'left', size: 48, values, ...(log ? {} : { space: 36 }) },
  ];
  if (tracks.some((track) => track.side === 'right')) {
    axes.push({ ...common, scale: 'right', side: RIGHT, size: 48, grid: { show: false }, values });
  }
  return axes;
}

function seriesOf(box: HTMLElement, track: PlotTrack, index: number): uPlot.Series {
  return {
    label: track.label,
    scale: track.side ?? 'left',
    stroke: inkOf(box, `ink-${index}`),
    width: 1.75,
    ...(index > 0 ? { dash: [5, 4] } : {}),
    spanGaps: false,
    points: { show: (_self, _index, from, to) => to - from < 2, size: 5 },
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

function isZoomed(plot: uPlot): boolean {
  const steps = plot.data[0];
  const { min, max } = plot.scales['x'] ?? {};
  if (steps.length < 2 || min == null || max == null) return false;
  return min > (steps[0] ?? 0) || max < (steps.at(-1) ?? 0);
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
