/** Images and files of messages: picked, pasted or dropped, made small enough, shown before and after they are sent. */

import { announce, el, icon, iconButton, part, said, size } from "./dom.js";

/** @import { FilePart, ImagePart, MessageResource } from "../resources.js" */
/** @typedef {ImagePart | FilePart} Attachment */

const IMAGES = ["image/png", "image/jpeg", "image/gif", "image/webp"]; // What the server takes; a browser runs nothing in them.
const IMAGE_BYTES = 200_000; // A larger one is drawn smaller: a model sees no more, and several fit into a message.
const EDGES = [2048, 1536, 1024, 768, 512]; // Lengths in pixels to try, of the longer side.
const QUALITY = 0.85;
const ATTACHMENTS_LIMIT = 31; // The server takes 32 parts; one is the text.
let limitBytes = 0;

/** How much the server takes with one message. @param {number} bytes */
export function limitAttachments(bytes) {
  limitBytes = bytes;
  part("attach").hidden = !bytes;
}

/** A message as it is sent: a text, or parts. @param {string} text @param {readonly Attachment[]} attachments */
export function messageOf(text, attachments) {
  if (!attachments.length) return text;
  return [...(text ? [{ type: /** @type {const} */ ("text"), text }] : []), ...attachments];
}

/** The attachments of a message. @param {MessageResource} message @returns {Attachment[]} */
export function attachmentsOf({ parts }) {
  return parts.filter((each) => each.type === "image" || each.type === "file");
}

/** Attachments, to be looked at. @param {readonly Attachment[]} attachments @param {(which: Attachment) => void} [onRemove] */
export function gallery(attachments, onRemove) {
  const images = attachments.filter((each) => each.type === "image");
  return attachments.map((each) => {
    const name = each.type === "file" ? each.name : images.length > 1 ? `Image ${images.indexOf(each) + 1}` : "Image";
    return el("li", {}, shown(each, name), onRemove && iconButton("cross", `Remove ${name}`, () => onRemove(each), { class: "icon remove" }));
  });
}

/** @param {Attachment} attachment @param {string} name */
function shown(attachment, name) {
  const { url, data, media_type: type } = attachment;
  if (url) return el("a", { class: "file", href: url, target: "_blank", rel: "noreferrer noopener" }, icon("clip"), el("span", {}, name));
  if (attachment.type === "image" && type && IMAGES.includes(type)) return picture(data ?? "", type, name);
  const bytes = Math.floor(((data ?? "").length * 3) / 4);
  return el("button", { type: "button", class: "file", title: `Save ${name}`, onclick: () => save(data ?? "", name) },
    icon("clip"), el("span", { dir: "auto" }, name), el("small", {}, size(bytes)));
}

/** @param {string} data @param {string} type @param {string} name */
function picture(data, type, name) {
  const url = URL.createObjectURL(new Blob([bytesOf(data)], { type }));
  const revoke = () => URL.revokeObjectURL(url);
  const image = el("img", { src: url, alt: name, onload: revoke, onerror: revoke });
  const look = () => button.setAttribute("aria-expanded", String(button.classList.toggle("whole")));
  const button = el("button", { type: "button", class: "picture", title: "Larger or smaller", "aria-expanded": "false", onclick: look }, image);
  return button;
}

/** As bytes, whatever they claim to be: no browser opens that. @param {string} data @param {string} name */
function save(data, name) {
  const url = URL.createObjectURL(new Blob([bytesOf(data)], { type: "application/octet-stream" }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** @param {string} data */
const bytesOf = (data) => Uint8Array.from(atob(data), (char) => char.charCodeAt(0));

/** What goes with the next message. */
export class Attachments {
  /** @type {Attachment[]} */ #taken = [];
  #list = part("attachments");
  #picker = /** @type {HTMLInputElement} */ (part("files"));

  /** @param {(text: string) => void} say to who writes */
  constructor(say) {
    this.say = say;
    part("attach").addEventListener("click", () => this.#picker.click());
    this.#picker.addEventListener("change", () => {
      void this.add([...(this.#picker.files ?? [])]);
      this.#picker.value = "";
    });
  }

  /** All of them, which are taken out. */
  take() {
    const taken = this.#taken;
    this.put([]);
    return taken;
  }

  get isEmpty() {
    return !this.#taken.length;
  }

  /** @param {readonly Attachment[]} attachments */
  put(attachments) {
    this.#taken = [...attachments];
    this.#list.hidden = !this.#taken.length;
    this.#list.replaceChildren(...gallery(this.#taken, (which) => {
      this.put(this.#taken.filter((each) => each !== which));
      announce("Removed");
      part("message").focus();
    }));
  }

  /** @param {readonly File[]} files */
  async add(files) {
    if (!limitBytes) return this.say("Files cannot be sent here: this chat takes text.");
    this.say("");
    for (const file of files) {
      try {
        if (this.#taken.length === ATTACHMENTS_LIMIT) throw new Error(`at most ${ATTACHMENTS_LIMIT} in one message`);
        const made = await attachment(file, this.#room);
        this.put([...this.#taken, made]);
        announce(`${file.name} is attached`);
      } catch (error) {
        this.say(`${file.name || "This"} cannot be sent: ${said(error)}.`);
      }
    }
  }

  get #room() {
    return limitBytes - this.#taken.reduce((sum, { data }) => sum + Math.ceil(((data ?? "").length * 3) / 4), 0);
  }
}

/** A file as a part of a message. @param {File} file @param {number} room in bytes @returns {Promise<Attachment>} */
async function attachment(file, room) {
  if (file.type.startsWith("image/")) {
    const image = await fitting(file, Math.min(room, IMAGE_BYTES));
    return { type: "image", url: null, data: await base64(image), media_type: image.type };
  }
  if (file.size > room) throw new Error(`it has ${size(file.size)}, and there is room for ${size(Math.max(0, room))}`);
  if (!file.size) throw new Error("it is empty");
  const type = file.type === "application/pdf" ? file.type : await textType(file);
  return { type: "file", name: file.name || "file", url: null, data: await base64(file), media_type: type };
}

/** The image as it is, or drawn so that it fits. @param {File} file @param {number} room @returns {Promise<Blob>} */
async function fitting(file, room) {
  if (IMAGES.includes(file.type) && file.size <= room) return file;
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Error("this browser cannot read the image");
  });
  for (const edge of EDGES) {
    const scale = Math.min(1, edge / Math.max(bitmap.width, bitmap.height));
    const canvas = el("canvas", { width: Math.max(1, Math.round(bitmap.width * scale)), height: Math.max(1, Math.round(bitmap.height * scale)) });
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    context.fillStyle = "white"; // A JPEG has no transparency: it would become black.
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    /** @type {Blob | null} */ const made = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", QUALITY));
    if (made && made.size <= room) return made;
  }
  throw new Error("there is no room for it");
}

/** @param {File} file */
async function textType(file) {
  try {
    new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    throw new Error("it is no image, PDF or text");
  }
  return /^text\/[a-z0-9.+-]{1,64}$|^application\/json$/.test(file.type) ? file.type : "text/plain";
}

/** @param {Blob} blob @returns {Promise<string>} */
function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result).replace(/^[^,]*,/, ""));
    reader.onerror = () => reject(new Error("it cannot be read"));
    reader.readAsDataURL(blob);
  });
}
