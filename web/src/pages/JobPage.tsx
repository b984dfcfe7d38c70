// One job, verdict first: how it stands, what came of it, its curves, its log, its history.
import { useEffect, useMemo } from 'preact/hooks';
import type { Action } from '../api/client';
import type { Job } from '../api/types';
import { formatCount, formatPercent } from '../lib/format';
import { isTerminal, titleOf } from '../lib/jobList';
import { hrefOf } from '../lib/route';
import { Actions } from '../components/Actions';
import { Chart } from '../components/Chart';
import { Icon } from '../components/Icon';
import { LogPanel } from '../components/LogPanel';
import { LoadingNotice } from '../components/Notice';
import { ProgressBar, ProgressText } from '../components/Progress';
import { Spec } from '../components/Spec';
import { Status } from '../components/Status';
import { Age, Elapsed, Until } from '../components/Time';
import { Timeline } from '../components/Timeline';
import { Failure, Results } from '../components/Verdict';
import { openJob, type Charted, type JobView } from '../state/job';
import { locale, messages } from '../state/preferences';
import { whereText } from '../lib/where';

export function JobPage({ id }: { id: string }) {
  const t = messages.value;
  const view = useMemo(() => openJob(id), [id]);
  useEffect(() => view.close, [view]);
  const job = view.job.value;
  useEffect(() => {
    if (job) document.title = tabTitleOf(job);
  });
  return (
    <>
      <a class="back" href={hrefOf({ page: 'jobs' })}>
        <Icon name="back" />
        {t.back_to_jobs}
      </a>
      {job ? (
        <Loaded view={view} job={job} />
      ) : (
        <LoadingNotice loading={view.loading.value} missing={t.job_missing} retry={view.reload} />
      )}
    </>
  );
}

function Loaded({ view, job }: { view: JobView; job: Job }) {
  return (
    <div class="stack">
      <Head job={job} act={view.act} />
      {job.status === 'failed' && <Failure job={job} />}
      {job.result && <Results result={job.result} />}
      <Charts view={view} job={job} />
      <LogPanel job={job} attempts={view.attempts.value} log={view.log} />
      <div class="pair">
        <Timeline events={view.events.value} />
        <Spec job={job} />
      </div>
    </div>
  );
}

function Head({ job, act }: { job: Job; act: (action: Action) => Promise<void> }) {
  return (
    <section class="card head">
      <div class="head-top">
        <div class="head-title">
          <h1>{titleOf(job)}</h1>
          <div aria-live="polite" class="head-verdict">
            <Status job={job} large />
            <p class="reason" data-testid="reason">
              {reasonOf(job)}
            </p>
          </div>
        </div>
        <Actions job={job} act={act} />
      </div>
      {(job.progress || !isTerminal(job.status)) && (
        <div class="head-progress">
          <ProgressBar job={job} />
          <ProgressText job={job} />
        </div>
      )}
      <Facts job={job} />
    </section>
  );
}

function Facts({ job }: { job: Job }) {
  const t = messages.value;
  const { attempt, wait } = job;
  const estimated = job.status === 'queued' ? (wait?.estimated_start_at ?? null) : null;
  // A job that waits again still has its last attempt, which says nothing of where or since when it runs.
  const placed = job.status === 'running' || isTerminal(job.status);
  return (
    <dl class="facts">
      <Fact label={t.preset}>{job.preset}</Fact>
      <Fact label={t.where}>
        {attempt && placed ? whereText(attempt, t) : t.devices_wanted(job.num_devices, job.device_type)}
      </Fact>
      {attempt && <Fact label={t.attempt}>{attempt.number}</Fact>}
      {job.status === 'queued' && wait !== null && wait.position !== null && (
        <Fact label={t.place}>
          <span data-testid="place">{formatCount(wait.position, locale.value)}</span>
        </Fact>
      )}
      {estimated !== null && (
        <Fact label={t.estimated_start}>
          <span data-testid="estimate">
            <Until at={estimated} />
            <span class="quiet estimate-note">
              {wait?.is_promised ? t.estimate_promised : t.estimate_rough}
            </span>
          </span>
        </Fact>
      )}
      {job.started_at !== null && placed && (
        <Fact label={job.finished_at === null ? t.running_for : t.took}>
          <Elapsed from={job.started_at} to={job.finished_at} />
        </Fact>
      )}
      <Fact label={t.created}>
        <Age at={job.created_at} />
      </Fact>
      <Fact label={t.owner}>{job.owner}</Fact>
      {Object.entries(job.labels).map(([name, value]) => (
        <Fact key={name} label={name}>
          {value}
        </Fact>
      ))}
    </dl>
  );
}

function Fact({ label, children }: { label: string; children: preact.ComponentChildren }) {
  return (
    <div>
      <dt>{label}</dt>
      <dd>{children}</dd>
    </div>
  );
}

function Charts({ view, job }: { view: JobView; job: Job }) {
  const t = messages.value;
  const { series } = view;
  const live = !isTerminal(job.status);
  const evaluates = job.train['do_eval'] !== false;
  // A chart that may still fill stands from the start, so that nothing below it moves.
  const shown = (one: Charted, expected: boolean): boolean =>
    series[one].value.size > 0 || (live && expected);
  return (
    <div class="charts">
      <Chart
        title={t.chart_loss}
        testId="chart-loss"
        lastStep={view.lastStep}
        empty={live ? t.chart_waiting : t.chart_none}
        tracks={[
          { label: t.series_loss, series: series.loss },
          { label: t.series_eval_loss, series: series.eval_loss },
        ]}
      />
      <Chart
        title={t.chart_speed}
        testId="chart-speed"
        lastStep={view.lastStep}
        empty={live ? t.chart_waiting : t.chart_none}
        tracks={[
          { label: t.series_samples_per_second, series: series.samples_per_second },
          { label: t.series_tokens_per_second, series: series.tokens_per_second, readout: true },
        ]}
      />
      {shown('perplexity', evaluates) && (
        <Chart
          title={t.chart_perplexity}
          testId="chart-perplexity"
          lastStep={view.lastStep}
          empty={t.chart_waiting_evaluation}
          log
          tracks={[{ label: t.series_perplexity, series: series.perplexity }]}
        />
      )}
      {shown('learning_rate', true) && (
        <Chart
          title={t.chart_learning_rate}
          testId="chart-learning-rate"
          lastStep={view.lastStep}
          empty={t.chart_waiting}
          tracks={[{ label: t.series_learning_rate, series: series.learning_rate }]}
        />
      )}
    </div>
  );
}

/** The sentence beside the status, where it says more than the status. */
const reasonOf = (job: Job): string | null => (job.status_reason === job.status ? null : job.status_reason);

/** A tab in the background tells how its job stands. */
function tabTitleOf(job: Job): string {
  const t = messages.value;
  const fraction = job.progress?.fraction ?? null;
  const state =
    job.status === 'running' && fraction !== null ? formatPercent(fraction, locale.value) : t[job.status];
  return `${state} · ${titleOf(job)} · Longyard`;
}
