// A live line chart over steps, with the value under the pointer in its heading.
import { useComputed, useSignal, type ReadonlySignal } from '@preact/signals';
import { useEffect, useRef } from 'preact/hooks';
import type uPlot from 'uplot';
import { formatCount, formatNumber } from '../lib/format';
import { align, lastValue, toLine, type Flag, type Line, type Series } from '../lib/series';
import { locale, messages, theme } from '../state/preferences';
import { drawChart } from './plot';

const FLAG_WORDS: Record<Flag, string> = { nan: 'NaN', inf: '∞', '-inf': '−∞' };

export interface Track {
  label: string;
  series: ReadonlySignal<Series>;
  /** Which of the two axes; a second unit takes the right one. */
  side?: 'left' | 'right';
}

interface Props {
  title: string;
  tracks: Track[];
  log?: boolean;
  live: boolean;
  testId: string;
}

export function Chart({ title, tracks, log = false, live, testId }: Props) {
  const t = messages.value;
  const box = useRef<HTMLDivElement>(null);
  const under = useSignal<number | null>(null);
  const lines = useComputed(() => tracks.map((track) => toLine(track.series.value)));
  const used = tracks.flatMap((track, index) => {
    const line = lines.value[index];
    return line && line.steps.length > 0 ? [{ ...track, line, index }] : [];
  });
  const shape = `${used.map((track) => track.index).join()}|${theme.value}|${locale.value}`;

  useEffect(() => {
    if (!box.current || used.length === 0) return;
    const plot = drawChart(box.current, used, {
      log,
      locale: locale.peek(),
      onStep: (step) => (under.value = step),
    });
    const stop = lines.subscribe((now) => plot.update(tableOf(used.map((track) => now[track.index]))));
    return () => {
      stop();
      plot.destroy();
    };
  }, [shape]);

  const flagged = used.reduce((sum, track) => sum + track.line.flagged.length, 0);
  return (
    <figure class="card chart" data-testid={testId} data-points={used[0]?.line.steps.length ?? 0}>
      <figcaption class="chart-head">
        <h3>{title}</h3>
        <Legend tracks={used} step={under.value} />
      </figcaption>
      <div class="plot" ref={box} role="img" aria-label={summary(title, used)} />
      {used.length === 0 && <p class="plot-empty quiet">{live ? t.chart_waiting : t.chart_none}</p>}
      {flagged > 0 && <p class="chart-flagged">{t.chart_flagged(flagged)}</p>}
    </figure>
  );
}

function Legend({ tracks, step }: { tracks: (Track & { line: Line })[]; step: number | null }) {
  const t = messages.value;
  return (
    <dl class="legend">
      {step !== null && <dd class="legend-step">{t.step(formatCount(step, locale.value))}</dd>}
      {tracks.map((track, index) => (
        <div class={`legend-item ink-${index}`} key={track.label}>
          <dt>{track.label}</dt>
          <dd class="num">{valueAt(track.line, step)}</dd>
        </div>
      ))}
    </dl>
  );
}

function valueAt(line: Line, step: number | null): string {
  if (step === null) {
    const last = lastValue(line);
    return last === null ? '–' : formatNumber(last, locale.value);
  }
  const index = line.steps.indexOf(step);
  const value = line.values[index];
  if (typeof value === 'number') return formatNumber(value, locale.value);
  const flag = line.flagged.find((mark) => mark.step === step)?.flag;
  return flag ? FLAG_WORDS[flag] : '–';
}

function summary(title: string, tracks: { line: Line }[]): string {
  const line = tracks[0]?.line;
  if (!line) return title;
  return messages.value.chart_summary(
    title,
    formatCount(line.steps.length, locale.value),
    valueAt(line, null),
  );
}

function tableOf(lines: (Line | undefined)[]): { data: uPlot.AlignedData; flags: number[] } {
  const present = lines.filter((line) => line !== undefined);
  const { steps, columns } = align(present);
  const flags = present.flatMap((line) => line.flagged.map((mark) => mark.step));
  return { data: [steps, ...columns], flags };
}
