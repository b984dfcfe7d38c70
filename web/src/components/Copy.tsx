// A text with a button that copies it.
import { useSignal } from '@preact/signals';
import { messages } from '../state/preferences';

const SHOWN_MS = 1500;

export function CopyButton({ text }: { text: string }) {
  const copied = useSignal(false);
  const t = messages.value;
  const copy = async (): Promise<void> => {
    await writeClipboard(text);
    copied.value = true;
    setTimeout(() => (copied.value = false), SHOWN_MS);
  };
  return (
    <button type="button" class="button button-small copy" onClick={() => void copy()}>
      <span aria-live="polite">{copied.value ? t.copied : t.copy}</span>
    </button>
  );
}

/** The clipboard API exists on https and localhost only; elsewhere a selection stands in. */
async function writeClipboard(text: string): Promise<void> {
  if (window.isSecureContext) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = document.createElement('textarea');
  area.value = text;
  area.className = 'offscreen';
  document.body.append(area);
  area.select();
  // eslint-disable-next-line @typescript-eslint/no-deprecated -- nothing else copies on plain http
  document.execCommand('copy');
  area.remove();
}
