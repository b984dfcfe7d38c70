// One card of a host: who holds it, how it is, and the button that keeps it from new jobs.
import type { Device } from '../api/types';
import { hrefOf } from '../lib/route';
import { vitalsOf, type Vitals } from '../lib/vitals';
import { locale, messages } from '../state/preferences';

interface Props {
  /** Its vitals come along where the server knows them. */
  device: Device & Vitals;
  busy: boolean;
  cordon: (cordoned: boolean) => void;
}

export function DeviceCell({ device, busy, cordon }: Props) {
  const t = messages.value;
  const state = device.cordoned && device.state === 'free' ? 'cordoned' : device.state;
  const vitals = vitalsOf(device, locale.value);
  return (
    <li class={`device device-${state}`} title={device.name} data-testid="device">
      <span class="device-name">{t.card(device.index)}</span>
      {device.job_id === null ? (
        <span class="device-state">{t[state]}</span>
      ) : (
        <a class="device-state" href={hrefOf({ page: 'job', id: device.job_id })} title={device.job_id}>
          {device.owner === null ? t[state] : t.held_by(t[state], device.owner)}
        </a>
      )}
      {device.cordoned && state !== 'cordoned' && <span class="device-state">{t.cordoned}</span>}
      {vitals !== '' && <span class="device-state num">{vitals}</span>}
      <button
        type="button"
        class="device-action"
        title={device.cordoned ? t.uncordon_hint : t.cordon_hint}
        aria-label={`${device.cordoned ? t.uncordon : t.cordon}: ${t.card(device.index)}`}
        disabled={busy}
        data-testid={device.cordoned ? 'uncordon' : 'cordon'}
        onClick={() => cordon(!device.cordoned)}
      >
        {device.cordoned ? t.uncordon : t.cordon}
      </button>
    </li>
  );
}
