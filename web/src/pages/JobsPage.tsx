// The table of jobs, live.
import { useEffect } from 'preact/hooks';
import type { Job, JobStatus } from '../api/types';
import { formatCount, formatLeft, formatNumber } from '../lib/format';
import { isTerminal, matches, STATUSES, titleOf } from '../lib/jobList';
import { hrefOf } from '../lib/route';
import { CopyButton } from '../components/Copy';
import { LoadingNotice, Notice } from '../components/Notice';
import { ProgressBar, ProgressText } from '../components/Progress';
import { Status } from '../components/Status';
import { Age } from '../components/Time';
import { now } from '../state/clock';
import { locale, messages } from '../state/preferences';
import { filter, jobs, jobsLoading, more, readJobs, readMoreJobs } from '../state/yard';
import { whereText } from '../lib/where';

export function JobsPage() {
  const t = messages.value;
  useEffect(() => {
    document.title = `${t.jobs} · Longyard`;
  });
  const shown = jobs.value.filter((job) => matches(job, filter.value));
  const unfiltered = filter.value.status === null && filter.value.text === '';
  return (
    <>
      <div class="page-head">
        <h1>{t.jobs}</h1>
        <Filters />
      </div>
      {shown.length > 0 && <Table jobs={shown} />}
      {shown.length === 0 && jobsLoading.value.state === 'ready' && (unfiltered ? <Empty /> : <NoMatch />)}
      {jobsLoading.value.state !== 'ready' && (
        <LoadingNotice loading={jobsLoading.value} missing={t.not_found} retry={() => void readJobs()} />
      )}
      {more.value !== null && (
        <button type="button" class="button more" onClick={() => void readMoreJobs()}>
          {t.load_more}
        </button>
      )}
    </>
  );
}

function Filters() {
  const t = messages.value;
  const chosen = filter.value.status;
  const choose = (status: JobStatus | null) => (filter.value = { ...filter.value, status });
  return (
    <div class="filters">
      <div class="segments" role="group" aria-label={t.filter_status}>
        {[null, ...STATUSES].map((status) => (
          <button
            key={status}
            type="button"
            class="toggle"
            aria-pressed={chosen === status}
            onClick={() => choose(status)}
          >
            {status === null ? t.filter_all : t[status]}
          </button>
        ))}
      </div>
      <input
        type="search"
        placeholder={t.filter_text}
        aria-label={t.filter_text}
        value={filter.value.text}
        onInput={(event) => (filter.value = { ...filter.value, text: event.currentTarget.value })}
      />
    </div>
  );
}

function Table({ jobs: rows }: { jobs: readonly Job[] }) {
  const t = messages.value;
  return (
    <div class="card table-card">
      <table class="jobs" data-testid="jobs-table">
        <thead>
          <tr>
            <th scope="col">{t.col_status}</th>
            <th scope="col">{t.col_name}</th>
            <th scope="col">{t.col_progress}</th>
            <th scope="col" class="right">
              {t.col_result}
            </th>
            <th scope="col">{t.col_where}</th>
            <th scope="col" class="right">
              {t.col_age}
            </th>
          </tr>
        </thead>
        <tbody>
          {rows.map((job) => (
            <Row key={job.id} job={job} />
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Row({ job }: { job: Job }) {
  const t = messages.value;
  const { attempt } = job;
  return (
    <tr data-testid="job-row" data-job={job.id}>
      <td class="cell-status">
        <Status job={job} />
      </td>
      <td class="cell-name">
        <a class="row-link" href={hrefOf({ page: 'job', id: job.id })}>
          {titleOf(job)}
        </a>
        <span class="quiet">{job.preset}</span>
      </td>
      <td class="cell-progress">
        <RowProgress job={job} />
      </td>
      <td class="cell-result right">
        <RowResult job={job} />
      </td>
      <td class="cell-where">
        {attempt && (job.status === 'running' || isTerminal(job.status))
          ? whereText(attempt, t)
          : t.devices_wanted(job.num_devices, job.device_type)}
      </td>
      <td class="cell-age right num">
        <Age at={job.created_at} />
      </td>
    </tr>
  );
}

function RowProgress({ job }: { job: Job }) {
  if (job.status === 'queued' && job.wait?.position != null) return <RowWait wait={job.wait} />;
  const sentence = job.status === 'queued' ? (job.wait?.reason ?? job.status_reason) : job.status_reason;
  if (job.status === 'queued' || job.status === 'failed' || !job.progress) {
    return sentence === job.status ? null : <span class="quiet clamp">{sentence}</span>;
  }
  return (
    <>
      {!isTerminal(job.status) && <ProgressBar job={job} />}
      <ProgressText job={job} percent={false} />
    </>
  );
}

/** "position 3 in the queue · starts in about 40 min", and why it waits. */
function RowWait({ wait }: { wait: NonNullable<Job['wait']> }) {
  const t = messages.value;
  const parts = [t.position(formatCount(wait.position ?? 0, locale.value))];
  if (wait.estimated_start_at !== null) {
    const left = formatLeft(wait.estimated_start_at, now.value, locale.value);
    parts.push(wait.is_promised ? t.starts_about(left) : t.starts_roughly(left));
  }
  return (
    <>
      <span class="progress-text">{parts.join(' · ')}</span>
      <span class="quiet clamp" title={wait.reason} data-testid="wait">
        {wait.reason}
      </span>
    </>
  );
}

function RowResult({ job }: { job: Job }) {
  const t = messages.value;
  const { result } = job;
  if (result?.perplexity != null) return <Measure label={t.perplexity} value={result.perplexity} />;
  if (result?.train_loss != null) return <Measure label={t.loss} value={result.train_loss} />;
  return <span class="quiet none">–</span>;
}

function Measure({ label, value }: { label: string; value: number }) {
  return (
    <>
      <span class="num">{formatNumber(value, locale.value)}</span>
      <span class="quiet">{label}</span>
    </>
  );
}

function NoMatch() {
  const t = messages.value;
  return (
    <Notice title={t.no_match}>
      <button type="button" class="button" onClick={() => (filter.value = { status: null, text: '' })}>
        {t.clear_filter}
      </button>
    </Notice>
  );
}

function Empty() {
  const t = messages.value;
  const command = curl();
  return (
    <Notice title={t.empty_title}>
      <p>{t.empty_text}</p>
      <div class="code-block">
        <pre>{command}</pre>
        <CopyButton text={command} />
      </div>
      <p class="empty-demo quiet">{t.empty_demo('./run demo')}</p>
    </Notice>
  );
}

/** The demo by hand, as the README has it; `./run demo` makes the files that it names. */
const curl = (): string => `curl ${location.origin}/jobs \\
  -H "Authorization: Bearer $(cat "\${LONGYARD_DATA_DIR:-.longyard}/token")" \\
  -H "Content-Type: application/json" -d @- <<END
{"name": "first", "preset": "demo", "train": {
  "train_file": "$PWD/examples/corpus/train_corpus.txt",
  "validation_file": "$PWD/examples/corpus/test_corpus.txt",
  "tokenizer_name": "$PWD/examples/lf_token"}}
END`;
