// What was asked for: the training configuration as a table, or as the JSON to submit again.
import { useSignal } from '@preact/signals';
import type { Job } from '../api/types';
import { specRows } from '../lib/spec';
import { messages } from '../state/preferences';
import { CopyButton } from './Copy';

export function Spec({ job }: { job: Job }) {
  const t = messages.value;
  const asJson = useSignal(false);
  const json = JSON.stringify(bodyOf(job), null, 2);
  return (
    <section class="card" aria-labelledby="spec-title">
      <div class="card-head">
        <h2 id="spec-title">{t.spec}</h2>
        <div class="segments" role="group" aria-label={t.spec}>
          <button
            type="button"
            class="toggle"
            aria-pressed={!asJson.value}
            onClick={() => (asJson.value = false)}
          >
            {t.spec_table}
          </button>
          <button
            type="button"
            class="toggle"
            aria-pressed={asJson.value}
            onClick={() => (asJson.value = true)}
          >
            {t.spec_json}
          </button>
        </div>
      </div>
      {asJson.value ? (
        <div class="code-block">
          <pre>{json}</pre>
          <CopyButton text={json} />
        </div>
      ) : (
        <table class="spec">
          <tbody>
            {specRows(job.train).map(([path, value]) => (
              <tr key={path}>
                <th scope="row">{path}</th>
                <td>{value}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </section>
  );
}

function bodyOf(job: Job): object {
  const { name, preset, train, num_devices, device_type, priority, time_limit_s, labels } = job;
  return { name, preset, train, num_devices, device_type, priority, time_limit_s, labels };
}
