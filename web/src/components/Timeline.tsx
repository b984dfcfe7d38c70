// What happened to a job, in order.
import type { JobEvent } from '../api/types';
import { eventText } from '../lib/eventText';
import { formatDateTime, formatTime } from '../lib/format';
import { locale, messages } from '../state/preferences';

/** Which day is today is settled once: a list that is read need not tick. */
const opened = Date.now();

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
          <Entry key={event.seq} event={event} />
        ))}
      </ol>
    </section>
  );
}

function Entry({ event }: { event: JobEvent }) {
  const { title, detail } = eventText(event, messages.value);
  return (
    <li data-kind={event.kind}>
      <time class="num" dateTime={event.at} title={formatDateTime(event.at, locale.value)}>
        {formatTime(event.at, opened, locale.value)}
      </time>
      <div>
        {title}
        {detail !== null && <p class="event-detail quiet">{detail}</p>}
      </div>
    </li>
  );
}
