// The hosts and their cards: which is free, which job holds which.
import { useEffect } from 'preact/hooks';
import type { Device, Host } from '../api/types';
import { formatAge, formatCount } from '../lib/format';
import { hrefOf } from '../lib/route';
import { LoadingNotice, Notice } from '../components/Notice';
import { now } from '../state/clock';
import { locale, messages } from '../state/preferences';
import { hosts, hostsLoading, readHosts } from '../state/yard';

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
  return (
    <section class="card host" data-testid="host">
      <div class="card-head">
        <h2>{host.name}</h2>
        <span class={`host-status host-${host.status}`}>{t[host.status]}</span>
        <span class="quiet num">{t.devices_free(count(free), count(host.devices.length))}</span>
        {host.status === 'lost' && (
          <span class="quiet">{t.last_seen(formatAge(host.last_seen_at, now.value, locale.value))}</span>
        )}
      </div>
      <ul class="devices">
        {host.devices.map((device) => (
          <DeviceCell key={device.index} device={device} />
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

function DeviceCell({ device }: { device: Device }) {
  const t = messages.value;
  const state = device.cordoned && device.state === 'free' ? 'cordoned' : device.state;
  return (
    <li class={`device device-${state}`} title={device.name}>
      <span class="device-name">{t.card(device.index)}</span>
      {device.job_id === null ? (
        <span class="device-state">{t[state]}</span>
      ) : (
        <a class="device-state" href={hrefOf({ page: 'job', id: device.job_id })}>
          {t[state]}
        </a>
      )}
    </li>
  );
}
