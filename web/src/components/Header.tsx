// The bar on top: where one is, whether the page is live, and how it looks.
import { logout } from '../api/client';
import { connection } from '../api/follow';
import logo from '../logo.svg';
import { hrefOf } from '../lib/route';
import { locale, messages, theme, type Theme } from '../state/preferences';
import { route } from '../state/router';
import { Icon } from './Icon';

const NEXT_THEME: Record<Theme, Theme> = { auto: 'light', light: 'dark', dark: 'auto' };

export function Header() {
  const t = messages.value;
  const page = route.value.page;
  return (
    <header class="top">
      <a class="skip" href="#main">
        {t.skip}
      </a>
      <div class="top-inner">
        <a class="brand" href={hrefOf({ page: 'jobs' })} aria-label="Longyard">
          <img src={logo} alt="" width="24" height="24" />
          <span>Longyard</span>
        </a>
        <nav aria-label={t.navigation}>
          <a
            href={hrefOf({ page: 'jobs' })}
            aria-current={page === 'jobs' || page === 'job' ? 'page' : undefined}
          >
            {t.jobs}
          </a>
          <a href={hrefOf({ page: 'hosts' })} aria-current={page === 'hosts' ? 'page' : undefined}>
            {t.hosts}
          </a>
        </nav>
        <ConnectionMark />
        <div class="top-tools">
          <LanguageButton />
          <ThemeButton />
          <SignOutButton />
        </div>
      </div>
    </header>
  );
}

export function LanguageButton() {
  const title = messages.value.switch_language;
  return (
    <button
      type="button"
      class="tool"
      title={title}
      aria-label={title}
      onClick={() => (locale.value = locale.value === 'en' ? 'zh' : 'en')}
    >
      {locale.value === 'en' ? '中' : 'En'}
    </button>
  );
}

export function ThemeButton() {
  const title = messages.value[`theme_${theme.value}`];
  return (
    <button
      type="button"
      class="tool"
      title={title}
      aria-label={title}
      onClick={() => (theme.value = NEXT_THEME[theme.value])}
    >
      <Icon name={theme.value} />
    </button>
  );
}

function SignOutButton() {
  const title = messages.value.sign_out;
  const signOut = async (): Promise<void> => {
    await logout().catch(() => undefined);
    location.assign('/ui/login');
  };
  return (
    <button type="button" class="tool" title={title} aria-label={title} onClick={() => void signOut()}>
      <Icon name="out" />
    </button>
  );
}

function ConnectionMark() {
  const t = messages.value;
  const state = connection.value;
  return (
    <span class={`connection connection-${state}`} role="status" data-testid="connection" data-state={state}>
      {state !== null && (
        <>
          <span class="connection-dot" aria-hidden="true" />
          <span class="connection-word">{t[`connection_${state}`]}</span>
        </>
      )}
    </span>
  );
}
