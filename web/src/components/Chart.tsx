// A live line chart over steps, with the values under the pointer in its heading.
import { effect, useComputed, useSignal, type ReadonlySignal } from '@preact/signals';
import { useEffect, useRef } from 'preact/hooks';
import { formatCount, formatMeasure } from '../lib/format';
import { align, lastValue, toLine, type Flag, type Line, type Series } from '../lib/series';
import { locale, messages, scheme } from '../state/preferences';
import { drawChart, type Table } from './plot';

const FLAG_WORDS: Record<Flag, string> = { nan: 'NaN', inf: '∞', '-inf': '−∞' };

export interface Track {
  label: string;
  series: ReadonlySignal<Series>;
  /** Its values are told in the heading, but no line is drawn: it would run along the first one. */
  readout?: boolean;
}

interface Props {
  title: string;
  tracks: Track[];
  log?: boolean;
  /** What stands where the line will be, until its first point. */
  empty: string;
  testId: string;
  /** The last step of any chart of the page. */
  lastStep: ReadonlySignal<number>;
}

export function Chart({ title, tracks, log = false, empty, testId, lastStep }: Props) {
  const t = messages.value;
  const box = useRef<HTMLDivElement>(null);
  const under = useSignal<number | null>(null);
  const lines = useComputed(() => tracks.map((track) => toLine(track.series.value)));
  const used = tracks.flatMap((track, index) => {
    const line = lines.value[index];
    return line && line.steps.length > 0 ? [{ ...track, line, index }] : [];
  });
  const drawn = used.filter((track) => !track.readout);
  const shape = `${drawn.map((track) => track.index).join()}|${scheme.value}|${locale.value}`;

  useEffect(() => {
    if (!box.current || drawn.length === 0) return;
    const onStep = (step: number | null) => (under.value = step);
    const plot = drawChart(box.current, drawn.length, { log, locale: locale.peek(), onStep });
    const stop = effect(() => {
      const now = lines.value;
      plot.update(
        tableOf(
          drawn.map((track) => now[track.index]),
          lastStep.value,
        ),
      );
    });
    return () => {
      stop();
      plot.destroy();
    };
  }, [shape]);

  const flagged = drawn.reduce((sum, track) => sum + track.line.flagged.length, 0);
  return (
    <figure class="card chart" data-testid={testId} data-points={used[0]?.line.steps.length ?? 0}>
      <figcaption class="chart-head">
        <h3>{title}</h3>
        {flagged > 0 && (
          <span class="chart-flagged">{t.chart_flagged(formatCount(flagged, locale.value))}</span>
        )}
        <Legend tracks={used} step={under.value} />
      </figcaption>
      <div class="plot" ref={box} role="img" aria-label={summary(title, used)} />
      {used.length === 0 && <p class="plot-empty quiet">{empty}</p>}
    </figure>
  );
}

function Legend({ tracks, step }: { tracks: (Track & { line: Line })[]; step: number | null }) {
  return (
    <dl class="legend">
      {step !== null && <dd class="legend-step">{messages.value.step(formatCount(step, locale.value))}</dd>}
      {tracks.map((track, index) => (
        <div class={`legend-item ${track.readout ? '' : `legend-line ink-${index}`}`} key={track.label}>
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
    return last === null ? '–' : formatMeasure(last, locale.value);
  }
  const value = line.values[line.steps.indexOf(step)];
  if (typeof value === 'number') return formatMeasure(value, locale.value);
  const flag = line.flagged.find((mark) => mark.step === step)?.flag;
  return flag ? FLAG_WORDS[flag] : '–';
}

function summary(title: string, tracks: { line: Line }[]): string {
  const line = tracks[0]?.line;
  if (!line) return title;
  const count = formatCount(line.steps.length, locale.value);
  return messages.value.chart_summary(title, count, valueAt(line, null));
}

function tableOf(lines: (Line | undefined)[], lastStep: number): Table {
  const present = lines.filter((line) => line !== undefined);
  const { steps, columns } = align(present);
  const flags = present.flatMap((line) => line.flagged.map((mark) => mark.step));
  return { data: [steps, ...columns], flags, lastStep };
}
