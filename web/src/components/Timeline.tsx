// What happened to a job, newest last.
import type { JobEvent } from '../api/types';
import { formatDateTime, formatTime } from '../lib/format';
import { locale, messages } from '../state/preferences';

export function Timeline({ events }: { events: readonly JobEvent[] }) {
  const t = messages.value;
  return (
    <section class="card" aria-labelledby="events-title">
      <div class="card-head">
        <h2 id="events-title">{t.events}</h2>
      </div>
      {events.length === 0 && <p class="quiet">{t.events_none}</p>}
      <ol class="timeline" data-testid="events">
        {events.map((event) => (
          <li key={event.seq}>
            <time class="num" dateTime={event.at} title={formatDateTime(event.at, locale.value)}>
              {formatTime(event.at, locale.value)}
            </time>
            <div>
              <span class="event-kind">{event.kind.replaceAll('_', ' ')}</span>
              <EventData data={event.data} />
            </div>
          </li>
        ))}
      </ol>
    </section>
  );
}

function EventData({ data }: { data: JobEvent['data'] }) {
  const entries = Object.entries(data).filter(([, value]) => value !== null && value !== '');
  if (entries.length === 0) return null;
  return (
    <span class="event-data quiet">
      {entries.map(([key, value]) => `${key.replaceAll('_', ' ')} ${textOf(value)}`).join(' · ')}
    </span>
  );
}

function textOf(value: unknown): string {
  if (typeof value === 'string') return value;
  if (Array.isArray(value)) return value.map(textOf).join(', ');
  return JSON.stringify(value);
}
