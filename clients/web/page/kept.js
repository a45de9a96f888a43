/** What the browser keeps for the page: for good, or for this tab. Where it keeps nothing, nothing is missed. */

const PREFIX = "chatserver.";

/** @param {"local" | "session"} area @returns {Storage | null} */
function storage(area) {
  try {
    return area === "local" ? localStorage : sessionStorage;
  } catch {
    return null;
  }
}

/** @param {"local" | "session"} area @param {string} name @returns {any} null: nothing */
export function kept(area, name) {
  try {
    return JSON.parse(storage(area)?.getItem(PREFIX + name) ?? "null");
  } catch {
    return null;
  }
}

/** @param {"local" | "session"} area @param {string} name @param {unknown} value null: forget it */
export function keep(area, name, value) {
  const place = storage(area);
  try {
    if (value === null) place?.removeItem(PREFIX + name);
    else place?.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    if (place) makeRoom(place);
  }
}

/** The storage is full: measurements are what can be missed. @param {Storage} place */
function makeRoom(place) {
  for (const name of Object.keys(place)) if (name.startsWith(`${PREFIX}measured.`)) place.removeItem(name);
}
