// Signing in by the one-time link, or by a token; says where a link comes from when there is none.
import { useSignal } from '@preact/signals';
import { useEffect } from 'preact/hooks';
import { ApiError, login } from '../api/client';
import { LanguageButton, ThemeButton } from '../components/Header';
import logo from '../logo.svg';
import { safeNext } from '../lib/route';
import { messages } from '../state/preferences';

type Credentials = { code: string } | { token: string };

/** Taken at once and out of the address, so that the code stays in no history. */
const code = location.hash.slice(1);
// The server answers with this page in place of any other that needs a session.
const wanted =
  location.pathname === '/ui/login' ? new URLSearchParams(location.search).get('next') : location.pathname;
const next = safeNext(wanted);
history.replaceState(null, '', location.pathname + location.search);

export function LoginPage() {
  const t = messages.value;
  const working = useSignal(code !== '');
  const problem = useSignal<string | null>(null);
  const signIn = async (credentials: Credentials): Promise<void> => {
    working.value = true;
    problem.value = null;
    try {
      await login(credentials);
      location.replace(next);
    } catch (error) {
      problem.value = explain(error, credentials);
      working.value = false;
    }
  };
  useEffect(() => {
    document.title = `${t.sign_in} · Longyard`;
  });
  useEffect(() => {
    if (code !== '') void signIn({ code });
  }, []);
  return (
    <main class="login">
      <div class="login-tools">
        <LanguageButton />
        <ThemeButton />
      </div>
      <section class="card login-card">
        <img src={logo} alt="" width="40" height="40" />
        <h1>{t.login_title}</h1>
        <div role="status" aria-live="polite">
          {working.value && <p class="quiet">{t.login_working}</p>}
          {problem.value !== null && (
            <p class="problem" data-testid="login-problem">
              {problem.value}
            </p>
          )}
        </div>
        {!working.value && <Ways signIn={signIn} />}
      </section>
    </main>
  );
}

function Ways({ signIn }: { signIn: (credentials: Credentials) => Promise<void> }) {
  const t = messages.value;
  const token = useSignal('');
  return (
    <>
      <ul class="login-ways">
        <li>
          <code>./run up</code> {t.login_up}
        </li>
        <li>
          <code>longyard login</code> {t.login_new}
        </li>
      </ul>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (token.value.trim() !== '') void signIn({ token: token.value.trim() });
        }}
      >
        <label for="token">{t.login_token}</label>
        <div class="login-row">
          <input
            id="token"
            type="password"
            autoComplete="current-password"
            data-testid="token"
            value={token.value}
            onInput={(event) => (token.value = event.currentTarget.value)}
          />
          <button type="submit" class="button button-primary" data-testid="sign-in">
            {t.sign_in}
          </button>
        </div>
      </form>
    </>
  );
}

function explain(error: unknown, credentials: Credentials): string {
  const t = messages.value;
  if (!(error instanceof ApiError)) throw error;
  if (error.status === 401) return 'code' in credentials ? t.login_bad_code : t.login_bad_token;
  return t.login_failed(error.status === 0 ? t.no_answer : error.message);
}
