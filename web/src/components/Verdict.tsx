// The outcome of a job: its results, or why it failed.
import type { ComponentChildren } from 'preact';
import type { Job, Result } from '../api/types';
import { parseAnsi } from '../lib/ansi';
import { reasonText } from '../lib/eventText';
import { formatCount, formatNumber } from '../lib/format';
import { locale, messages } from '../state/preferences';
import { CopyButton } from './Copy';

export function Results({ result }: { result: Result }) {
  const t = messages.value;
  const { perplexity: after, initial_perplexity: before } = result;
  return (
    <section class="results" aria-label={t.col_result} data-testid="result">
      {after !== null && (
        <Tile
          label={t.perplexity}
          note={before !== null && before > after ? t.times_lower(times(before / after)) : null}
        >
          {before !== null && (
            <>
              <span class="tile-before" aria-label={t.perplexity_before}>
                {num(before)}
              </span>
              <span class="tile-arrow" aria-hidden="true">
                →
              </span>
            </>
          )}
          <span aria-label={t.perplexity_after}>{num(after)}</span>
        </Tile>
      )}
      {result.fps !== null && (
        <Tile label={t.fps} note={result.fps_wall === null ? null : t.fps_wall(num(result.fps_wall))}>
          {num(result.fps)} <span class="tile-unit">{t.samples_unit}</span>
        </Tile>
      )}
      {result.train_loss !== null && (
        <Tile label={t.train_loss} note={result.epochs === null ? null : t.epochs(num(result.epochs))}>
          {num(result.train_loss)}
        </Tile>
      )}
      {result.output !== null && (
        <div class="tile tile-path">
          <h3>{t.weights}</h3>
          <div class="path">
            <code>{result.output}</code>
            <CopyButton text={result.output} />
          </div>
          {result.torch_version !== null && <p class="tile-note">PyTorch {result.torch_version}</p>}
        </div>
      )}
    </section>
  );
}

export function Failure({ job }: { job: Job }) {
  const t = messages.value;
  const { attempt } = job;
  const rank = attempt?.failing_rank ?? null;
  const reason = attempt?.exit_reason ? reasonText(attempt.exit_reason, t) : null;
  return (
    <section class="card failure" aria-labelledby="failure-title" data-testid="failure">
      <h2 id="failure-title">{t.failure_title}</h2>
      <p class="failure-where">
        {[reason, rank === null ? null : t.failing_rank(rank)].filter((part) => part !== null).join(' · ')}
      </p>
      {attempt?.message && <p class="failure-message">{attempt.message}</p>}
      {job.log_tail && job.log_tail.length > 0 && (
        <details open>
          <summary>{t.failure_tail(rank)}</summary>
          <pre class="log-tail" tabIndex={0}>
            {job.log_tail.map((line) =>
              parseAnsi(line)
                .map((span, index) => (
                  <span key={index} class={span.className}>
                    {span.text}
                  </span>
                ))
                .concat(<>{'\n'}</>),
            )}
          </pre>
        </details>
      )}
    </section>
  );
}

function Tile({
  label,
  note,
  children,
}: {
  label: string;
  note: string | null;
  children: ComponentChildren;
}) {
  return (
    <div class="tile">
      <h3>{label}</h3>
      <p class="tile-value num">{children}</p>
      <p class="tile-note">{note}</p>
    </div>
  );
}

/** "8.4", "79": a ratio says no more than that. */
const times = (ratio: number): string =>
  ratio < 10 ? num(Math.round(ratio * 10) / 10) : formatCount(ratio, locale.value);

const num = (value: number): string => formatNumber(value, locale.value);
