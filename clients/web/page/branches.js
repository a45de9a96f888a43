/**
 * The messages of a session as a tree, and the one branch of it that is shown. No DOM.
 *
 * An edited message and an answer that was given again are versions: children of one parent, the oldest first.
 */

/** @template {{ message_id: string, parent_id: string | null }} M */
export class Branches {
  /** As they were made. @type {M[]} */ #messages = [];
  /** @type {Map<string, M>} */ #byId = new Map();
  /** The newest message of the branch that is shown. @type {string | null} */ leaf = null;
  /** Whether the session has no messages before these. */ isWhole = true;

  /** Take what the server has: it replaces what is known of the same messages. @param {M[]} messages @param {boolean} [areOlder] */
  load(messages, areOlder = false) {
    const fresh = messages.filter((each) => !this.#byId.has(each.message_id));
    for (const each of messages) this.#byId.set(each.message_id, each);
    const known = this.#messages.map((each) => this.get(each.message_id));
    this.#messages = areOlder ? [...fresh, ...known] : [...known, ...fresh];
  }

  /** @param {string} id @returns {M} */
  get(id) {
    return /** @type {M} */ (this.#byId.get(id));
  }

  /** @param {string | null} id */
  has(id) {
    return id !== null && this.#byId.has(id);
  }

  get newest() {
    return this.#messages.at(-1)?.message_id ?? null;
  }

  /** What is shown, oldest first: from the leaf up to the root, or to where older messages are not known yet. */
  get path() {
    /** @type {M[]} */ const path = [];
    for (let id = this.leaf; id !== null && this.has(id); id = this.get(id).parent_id) path.unshift(this.get(id));
    return path;
  }

  /** All versions of a message, itself among them; itself alone where others may not be known. @param {string} id @returns {string[]} */
  versions(id) {
    const { parent_id: parent } = this.get(id);
    if (parent === null ? !this.isWhole : !this.has(parent)) return [id];
    return this.#messages.filter((each) => each.parent_id === parent).map((each) => each.message_id);
  }

  /** Show the branch of a message that ends with the newest one. @param {string} id */
  show(id) {
    const below = new Set([id]);
    this.leaf = id;
    for (const { message_id: each, parent_id: parent } of this.#messages) {
      if (parent === null || !below.has(parent)) continue;
      below.add(each);
      this.leaf = each;
    }
  }
}
