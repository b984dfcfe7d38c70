// What stands in place of a page that cannot be shown, or on top of one that no longer follows.
import type { ComponentChildren } from 'preact';
import { connection } from '../api/follow';
import { hrefOf } from '../lib/route';
import { messages } from '../state/preferences';
import type { Loading } from '../state/loading';

export function Notice({ title, children }: { title: string; children?: ComponentChildren }) {
  return (
    <div class="notice">
      <h2>{title}</h2>
      {children}
    </div>
  );
}

/** In place of what an address names and is not there. */
export function Missing({ title }: { title: string }) {
  const t = messages.value;
  return (
    <Notice title={title}>
      <p>{t.missing_text}</p>
      <a class="button" href={hrefOf({ page: 'jobs' })}>
        {t.back_to_jobs}
      </a>
    </Notice>
  );
}

/** The page while it is not ready; nothing once it is. */
export function LoadingNotice({
  loading,
  missing,
  retry,
}: {
  loading: Loading;
  missing: string;
  retry: () => void;
}) {
  const t = messages.value;
  if (loading.state === 'missing') return <Missing title={missing} />;
  if (loading.state === 'loading') return <p class="quiet loading">{t.loading}</p>;
  if (loading.state !== 'failed' || connection.value === 'signed_out') return null;
  return (
    <Notice title={t.failed_to_load(loading.why || t.no_answer)}>
      <button type="button" class="button" onClick={retry}>
        {t.try_again}
      </button>
    </Notice>
  );
}

/** Over the page's foot, so that nothing on it moves. */
export function OfflineBar() {
  if (connection.value !== 'offline') return null;
  return (
    <p class="offline-bar" role="status" data-testid="offline">
      {messages.value.offline_text}
    </p>
  );
}

export function SignedOutBanner() {
  const t = messages.value;
  if (connection.value !== 'signed_out') return null;
  return (
    <div class="banner" role="alert" data-testid="signed-out">
      <div>
        <strong>{t.signed_out_title}</strong>
        <p>{t.signed_out_text}</p>
      </div>
      <a class="button button-primary" href={`/ui/login?next=${encodeURIComponent(location.pathname)}`}>
        {t.sign_in}
      </a>
    </div>
  );
}
