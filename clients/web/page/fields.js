/** The fields of a flat JSON Schema: texts, numbers, yes or no, one or several of a list. Other schemas are asked for as JSON. */

import { el } from "./dom.js";
import { Exact, mistakeIn, parse, stringify } from "./exact.js";

/** @typedef {Record<string, any>} Schema */
/**
 * @typedef {object} Field
 * @property {HTMLElement} element
 * @property {() => unknown} value undefined: nothing was given
 * @property {() => boolean} isValid it says what is wrong, if it is not
 */

const TYPES = /** @type {Record<string, string>} */ ({ email: "email", uri: "url", date: "date", "date-time": "datetime-local" });
let fields = 0;

export class Fields {
  /** @type {[string, Field][]} */ #fields;

  /** @param {unknown} schema of an object */
  constructor(schema) {
    const { properties, required } = /** @type {Schema} */ (isObject(schema) ? schema : {});
    const isRequired = (/** @type {string} */ name) => Array.isArray(required) && required.includes(name);
    this.#fields = Object.entries(isObject(properties) ? properties : {}).map(([name, each]) =>
      [name, field(name, isObject(each) ? each : {}, isRequired(name))]);
  }

  get elements() {
    return this.#fields.map(([, { element }]) => element);
  }

  /** What was filled in; null: it is not valid, and the first field that is wrong says so. */
  content() {
    if (!this.#fields.every(([, each]) => each.isValid())) return null;
    const given = this.#fields.map(([name, each]) => /** @type {const} */ ([name, each.value()]));
    return Object.fromEntries(given.filter(([, value]) => value !== undefined));
  }
}

/** @param {string} name @param {Schema} schema @param {boolean} isRequired @returns {Field} */
function field(name, schema, isRequired) {
  const choices = choicesOf(schema);
  const label = `${text(schema.title) || name}${isRequired || schema.type === "boolean" ? "" : " (optional)"}`;
  const given = { label, hint: text(schema.description), isRequired, id: `field-${++fields}` };
  if (choices && schema.type === "array") return several(given, choices, schema);
  if (choices) return oneOf(given, choices, schema.default);
  if (schema.type === "boolean") return checkbox(given, schema.default === true);
  if (schema.type === "number" || schema.type === "integer") return numeric(given, schema);
  return schema.type === "string" ? textual(given, schema) : json(given, schema.default);
}

/** @typedef {{ label: string, hint: string, isRequired: boolean, id: string }} Given */
/** @typedef {{ value: unknown, title: string }} ChoiceOf */

/** What one may choose from, if it is a choice. @param {Schema} schema @returns {ChoiceOf[] | null} */
function choicesOf(schema) {
  const from = isObject(schema.items) ? schema.items : schema;
  if (Array.isArray(from.enum)) return from.enum.map((value, i) => ({ value, title: text(from.enumNames?.[i]) || String(value) }));
  const titled = from.oneOf ?? from.anyOf;
  if (!Array.isArray(titled) || !titled.every((each) => isObject(each) && "const" in each)) return null;
  return titled.map((each) => ({ value: each.const, title: text(each.title) || String(each.const) }));
}

/** A control with its label, and its hint. @param {Given} given @param {HTMLElement} control */
function labelled({ label, hint, id }, control) {
  control.id = id;
  if (hint) control.setAttribute("aria-describedby", `${id}-hint`);
  return el("div", { class: "field" }, el("label", { for: id, dir: "auto" }, label), control, hint && el("p", { class: "hint", id: `${id}-hint`, dir: "auto" }, hint));
}

/** @param {Given} given @param {HTMLInputElement | HTMLTextAreaElement | HTMLSelectElement} control @param {(text: string) => unknown} read @returns {Field} */
function control(given, control, read) {
  if (given.isRequired) control.required = true;
  return { element: labelled(given, control), value: () => (control.value === "" ? undefined : read(control.value)), isValid: () => control.reportValidity() };
}

/** @param {Given} given @param {Schema} schema */
function textual(given, { format, minLength, maxLength, default: initial }) {
  const type = Object.hasOwn(TYPES, format) ? TYPES[format] : "text";
  const input = el("input", { type, dir: "auto", minlength: count(minLength), maxlength: count(maxLength) });
  input.value = text(initial);
  return control(given, input, (value) => (type === "datetime-local" ? new Date(value).toISOString() : value));
}

/** @param {Given} given @param {Schema} schema */
function numeric(given, { type, minimum, maximum, default: initial }) {
  const bounds = { min: number(minimum), max: number(maximum), step: type === "integer" ? 1 : "any" };
  const input = el("input", { type: "number", inputmode: type === "integer" ? "numeric" : "decimal", ...bounds });
  input.value = String(number(initial) ?? "");
  // A field may have 007 and .5, JSON may not.
  return control(given, input, (value) => parse(value.replace(/^(-?)0+(?=\d)/, "$1").replace(/^-?(?=\.)/, "$&0")));
}

/** @param {Given} given @param {unknown} initial */
function json(given, initial) {
  const area = el("textarea", { rows: 2, class: "code-field", spellcheck: "false", dir: "ltr", placeholder: "JSON" });
  area.value = initial === undefined ? "" : stringify(initial);
  area.addEventListener("input", () => area.setCustomValidity(area.value && mistakeIn(area.value)));
  return control(given, area, parse);
}

/** @param {Given} given @param {ChoiceOf[]} choices @param {unknown} initial */
function oneOf(given, choices, initial) {
  const options = choices.map(({ value, title }, i) => el("option", { value: i, selected: isSame(value, initial) }, title));
  const select = el("select", {}, el("option", { value: "" }, "Choose"), ...options);
  return control(given, select, (i) => choices[Number(i)].value);
}

/** @param {Given} given @param {boolean} initial @returns {Field} */
function checkbox({ label, hint, id }, initial) {
  const input = el("input", { type: "checkbox", id, checked: initial, "aria-describedby": hint && `${id}-hint` });
  const element = el("div", { class: "field" }, el("label", { class: "tick", dir: "auto" }, input, label), hint && el("p", { class: "hint", id: `${id}-hint`, dir: "auto" }, hint));
  return { element, value: () => input.checked, isValid: () => true };
}

/** @param {Given} given @param {ChoiceOf[]} choices @param {Schema} schema @returns {Field} */
function several({ label, hint, isRequired }, choices, { minItems, maxItems, default: initial }) {
  const chosen = Array.isArray(initial) ? initial : [];
  const inputs = choices.map(({ value }) => el("input", { type: "checkbox", checked: chosen.some((each) => isSame(each, value)) }));
  const ticks = choices.map(({ title }, i) => el("label", { class: "tick", dir: "auto" }, inputs[i], title));
  const element = el("fieldset", { class: "field" }, el("legend", { dir: "auto" }, label), hint && el("p", { class: "hint", dir: "auto" }, hint), ...ticks);
  const value = () => choices.filter((_, i) => inputs[i].checked).map((each) => each.value);
  const least = Number(number(minItems) ?? isRequired), most = Number(number(maxItems) ?? choices.length);
  const problem = () => {
    const { length } = value();
    return length < least && (isRequired || length) ? `Choose at least ${least}.` : length > most ? `Choose at most ${most}.` : "";
  };
  element.addEventListener("change", () => inputs[0]?.setCustomValidity(""));
  return { element, value: () => (isRequired || value().length ? value() : undefined), isValid: () => {
    inputs[0]?.setCustomValidity(problem());
    return inputs[0]?.reportValidity() ?? true;
  } };
}

/** @param {unknown} value @returns {value is Schema} */
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** @param {unknown} value */
const text = (value) => (typeof value === "string" ? value : "");

/** @param {unknown} value */
const number = (value) => (typeof value === "number" || value instanceof Exact ? value : undefined);

/** @param {unknown} value */
const count = (value) => (Number.isInteger(value) && /** @type {number} */ (value) >= 0 ? value : undefined);

/** @param {unknown} a @param {unknown} b */
const isSame = (a, b) => stringify(a) === stringify(b);
