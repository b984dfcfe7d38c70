// The hosts and their cards: which is free, which job holds which; taken out of use and back.
import { useSignal } from '@preact/signals';
import { useEffect } from 'preact/hooks';
import { ApiError, cordonDevice, drainHost } from '../api/client';
import type { Host } from '../api/types';
import { formatAge, formatCount } from '../lib/format';
import { DeviceCell } from '../components/Device';
import { LoadingNotice, Notice } from '../components/Notice';
import { now } from '../state/clock';
import { locale, messages } from '../state/preferences';
import { hosts, hostsLoading, readHosts, showHost } from '../state/yard';

export function HostsPage() {
  const t = messages.value;
  useEffect(() => {
    document.title = `${t.hosts} · Longyard`;
  });
  return (
    <>
      <div class="page-head">
        <h1>{t.hosts}</h1>
      </div>
      <div class="stack" data-testid="hosts">
        {hosts.value.map((host) => (
          <HostCard key={host.name} host={host} />
        ))}
      </div>
      {hosts.value.length === 0 && hostsLoading.value.state === 'ready' && (
        <Notice title={t.hosts_none_title}>
          <p>{t.hosts_none_text}</p>
        </Notice>
      )}
      {hostsLoading.value.state !== 'ready' && (
        <LoadingNotice loading={hostsLoading.value} missing={t.not_found} retry={() => void readHosts()} />
      )}
    </>
  );
}

function HostCard({ host }: { host: Host }) {
  const t = messages.value;
  const free = host.devices.filter((device) => device.state === 'free' && !device.cordoned).length;
  const count = (n: number): string => formatCount(n, locale.value);
  const busy = useSignal(false);
  const problem = useSignal<string | null>(null);
  const send = async (change: Promise<Host>): Promise<void> => {
    busy.value = true;
    problem.value = null;
    try {
      showHost(await change);
    } catch (error) {
      const why = error instanceof ApiError && error.status > 0 ? error.message : t.no_answer;
      problem.value = t.action_failed(why);
    } finally {
      busy.value = false;
    }
  };
  const isDrained = host.drained_at !== null;
  return (
    <section class="card host" data-testid="host" data-host={host.name}>
      <div class="card-head">
        <h2>{host.name}</h2>
        <span class={`host-status host-${host.status}`}>{t[host.status]}</span>
        <span class="quiet num">{t.devices_free(count(free), count(host.devices.length))}</span>
        {host.status === 'lost' && (
          <span class="quiet">{t.last_seen(formatAge(host.last_seen_at, now.value, locale.value))}</span>
        )}
        {host.drained_at !== null && (
          <span class="quiet">{t.drained_since(formatAge(host.drained_at, now.value, locale.value))}</span>
        )}
        <button
          type="button"
          class="button button-small host-action"
          title={isDrained ? t.undrain_hint : t.drain_hint}
          disabled={busy.value}
          data-testid={isDrained ? 'undrain' : 'drain'}
          onClick={() => void send(drainHost(host.name, !isDrained))}
        >
          {isDrained ? t.undrain : t.drain}
        </button>
      </div>
      {problem.value !== null && (
        <p class="action-problem" role="alert">
          {problem.value}
        </p>
      )}
      <ul class="devices">
        {host.devices.map((device) => (
          <DeviceCell
            key={device.index}
            device={device}
            busy={busy.value}
            cordon={(cordoned) => void send(cordonDevice(host.name, device.index, cordoned))}
          />
        ))}
      </ul>
      <p class="quiet versions">
        {Object.entries(host.versions)
          .map(([name, version]) => `${name} ${version}`)
          .join(' · ')}
      </p>
    </section>
  );
}
