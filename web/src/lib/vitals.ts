// How a card is, as its vendor's tool says: what is not known is left out.
import { formatCount, type Locale } from './format';

/** Utilisation is in percent. */
export interface Vitals {
  health?: string | null;
  temperature_c?: number | null;
  utilization?: number | null;
  memory_used_bytes?: number | null;
  memory_total_bytes?: number | null;
}

const GIB = 2 ** 30;

/** "warning · 61 °C · 83 % · 40/64 GiB"; a card that is well does not say so. */
export function vitalsOf(vitals: Vitals, locale: Locale): string {
  const {
    health,
    temperature_c: celsius,
    utilization,
    memory_used_bytes: used,
    memory_total_bytes: total,
  } = vitals;
  const count = (n: number): string => formatCount(n, locale);
  const parts: string[] = [];
  if (health != null && !['ok', 'unknown'].includes(health.toLowerCase())) parts.push(health);
  if (celsius != null) parts.push(`${count(celsius)} °C`);
  if (utilization != null) parts.push(`${count(utilization)} %`);
  if (used != null && total != null) parts.push(`${count(used / GIB)}/${count(total / GIB)} GiB`);
  return parts.join(' · ');
}
