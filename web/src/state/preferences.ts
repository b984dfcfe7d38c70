// What a person chose for this browser: theme and language.
import { computed, effect, signal } from '@preact/signals';
import type { Locale } from '../lib/format';
import { en, type Messages } from '../lib/messages';
import { zh } from '../lib/messages.zh';

export type Theme = 'auto' | 'light' | 'dark';

const CATALOGUES: Record<Locale, Messages> = { en, zh };

export const theme = signal<Theme>(stored('theme', ['auto', 'light', 'dark']) ?? 'auto');
const systemDark = matchMedia('(prefers-color-scheme: dark)');
const isSystemDark = signal(systemDark.matches);
systemDark.addEventListener('change', () => (isSystemDark.value = systemDark.matches));

/** The theme as it is seen, whoever chose it. */
export const scheme = computed<'light' | 'dark'>(() =>
  theme.value === 'auto' ? (isSystemDark.value ? 'dark' : 'light') : theme.value,
);
export const locale = signal<Locale>(
  stored('locale', ['en', 'zh']) ?? (navigator.language.startsWith('zh') ? 'zh' : 'en'),
);
export const messages = computed<Messages>(() => CATALOGUES[locale.value]);

effect(() => {
  const root = document.documentElement;
  if (theme.value === 'auto') delete root.dataset['theme'];
  else root.dataset['theme'] = theme.value;
  store('theme', theme.value);
});

effect(() => {
  document.documentElement.lang = locale.value === 'zh' ? 'zh-CN' : 'en';
  store('locale', locale.value);
});

function stored<T extends string>(key: string, allowed: readonly T[]): T | null {
  try {
    const value = localStorage.getItem(`longyard.${key}`);
    return allowed.find((option) => option === value) ?? null;
  } catch {
    return null; // storage may be refused; the choice then lasts as long as the page
  }
}

function store(key: string, value: string): void {
  try {
    localStorage.setItem(`longyard.${key}`, value);
  } catch {
    return;
  }
}
