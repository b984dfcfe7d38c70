// A following log: only the lines in view are in the page; it stays at the end until a person scrolls away.
import { useSignal } from '@preact/signals';
import { elementScroll, observeElementOffset, observeElementRect, Virtualizer } from '@tanstack/virtual-core';
import { useLayoutEffect, useRef, useState } from 'preact/hooks';
import { logUrl } from '../api/client';
import type { Attempt, Job } from '../api/types';
import { parseAnsi } from '../lib/ansi';
import { isTerminal } from '../lib/jobList';
import type { LogText } from '../lib/logText';
import type { LogView } from '../state/log';
import { messages } from '../state/preferences';

const LINE_HEIGHT = 20;
const NEAR_END = 4;

export function LogPanel({ job, attempts, log }: { job: Job; attempts: readonly Attempt[]; log: LogView }) {
  const t = messages.value;
  const text = log.text.value;
  const following = useSignal(true);
  const wrap = useSignal(false);
  const rank = text?.rank ?? 0;
  const attempt = text?.attempt ?? attempts.at(-1)?.number ?? 1;
  return (
    <section class="card log-card" aria-labelledby="log-title">
      <div class="card-head">
        <h2 id="log-title">{t.log}</h2>
        <div class="log-tools">
          {attempts.length > 1 && (
            <Choice
              label={t.attempt}
              value={attempt}
              options={attempts.map((one) => one.number)}
              onChange={(chosen) => void log.choose(rank, chosen === attempts.at(-1)?.number ? null : chosen)}
            />
          )}
          <Choice
            label={t.log_rank}
            value={rank}
            options={Array.from({ length: job.num_devices }, (_, index) => index)}
            onChange={(chosen) =>
              void log.choose(chosen, attempt === attempts.at(-1)?.number ? null : attempt)
            }
          />
          <Toggle label={t.log_follow} on={following.value} set={(on) => (following.value = on)} />
          <Toggle label={t.log_wrap} on={wrap.value} set={(on) => (wrap.value = on)} />
          <a href={logUrl(job.id, rank, attempt)} target="_blank" rel="noreferrer">
            {t.log_whole}
          </a>
        </div>
      </div>
      {text && text.lines.length > 0 ? (
        <Lines
          text={text}
          wrap={wrap.value}
          following={following.value}
          setFollowing={(on) => (following.value = on)}
        />
      ) : (
        <div class="log log-empty quiet" data-testid="log">
          {log.loading.value ? t.loading : isTerminal(job.status) ? t.log_none : t.log_waiting}
        </div>
      )}
    </section>
  );
}

interface LinesProps {
  text: LogText;
  wrap: boolean;
  following: boolean;
  setFollowing: (on: boolean) => void;
}

function Lines({ text, wrap, following, setFollowing }: LinesProps) {
  const box = useRef<HTMLDivElement>(null);
  const virtualizer = useVirtualizer(box, text, wrap);
  const items = virtualizer.getVirtualItems();
  const height = virtualizer.getTotalSize();

  useDroppedLines(box, text, following);
  useLayoutEffect(() => {
    if (following && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [text, following, height, wrap]);

  const onScroll = (): void => {
    const element = box.current;
    if (!element) return;
    const atEnd = element.scrollHeight - element.scrollTop - element.clientHeight <= NEAR_END;
    if (atEnd !== following) setFollowing(atEnd);
  };
  return (
    <div
      class={`log ${wrap ? 'log-wrap' : ''}`}
      ref={box}
      tabIndex={0}
      role="log"
      aria-live="off"
      data-testid="log"
      onScroll={onScroll}
    >
      {text.start > 0 || text.dropped > 0 ? (
        <p class="log-earlier quiet">{messages.value.log_earlier}</p>
      ) : null}
      <div class="log-lines" style={{ height: `${height}px` }}>
        {items.map((item) => (
          <div
            class="log-line"
            key={text.dropped + item.index}
            data-index={item.index}
            ref={wrap ? virtualizer.measureElement : null}
            style={{ transform: `translateY(${item.start}px)` }}
          >
            <LogLine line={text.lines[item.index] ?? ''} />
          </div>
        ))}
      </div>
    </div>
  );
}

function LogLine({ line }: { line: string }) {
  return (
    <>
      {parseAnsi(line).map((span, index) =>
        span.className ? (
          <span key={index} class={span.className}>
            {span.text}
          </span>
        ) : (
          span.text
        ),
      )}
      {'\n'}
    </>
  );
}

function useVirtualizer(box: { current: HTMLDivElement | null }, text: LogText, wrap: boolean) {
  const [, redraw] = useState(0);
  const held = useRef<Virtualizer<HTMLDivElement, HTMLDivElement> | null>(null);
  const options = {
    count: text.lines.length,
    getScrollElement: () => box.current,
    estimateSize: () => LINE_HEIGHT,
    getItemKey: (index: number) => text.dropped + index,
    overscan: 12,
    observeElementRect,
    observeElementOffset,
    scrollToFn: elementScroll,
    onChange: () => redraw((count) => count + 1),
  };
  held.current ??= new Virtualizer<HTMLDivElement, HTMLDivElement>(options);
  const virtualizer = held.current;
  virtualizer.setOptions(options);
  useLayoutEffect(() => virtualizer._didMount(), []);
  useLayoutEffect(() => virtualizer._willUpdate());
  useLayoutEffect(() => virtualizer.measure(), [wrap]);
  return virtualizer;
}

/** When the oldest lines are let go, what a person reads must not move. */
function useDroppedLines(box: { current: HTMLDivElement | null }, text: LogText, following: boolean): void {
  const before = useRef(text.dropped);
  useLayoutEffect(() => {
    const gone = text.dropped - before.current;
    before.current = text.dropped;
    if (gone > 0 && !following && box.current) box.current.scrollTop -= gone * LINE_HEIGHT;
  }, [text.dropped]);
}

function Choice(props: {
  label: string;
  value: number;
  options: number[];
  onChange: (value: number) => void;
}) {
  return (
    <label class="choice">
      <span>{props.label}</span>
      <select value={props.value} onChange={(event) => props.onChange(Number(event.currentTarget.value))}>
        {props.options.map((option) => (
          <option key={option} value={option}>
            {option}
          </option>
        ))}
      </select>
    </label>
  );
}

function Toggle({ label, on, set }: { label: string; on: boolean; set: (on: boolean) => void }) {
  return (
    <button type="button" class="toggle" aria-pressed={on} onClick={() => set(!on)}>
      {label}
    </button>
  );
}
