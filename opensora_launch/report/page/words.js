// The words of the page: WORDS has the templates of words/en.json and words/ko.json; wording.py explains them and does the same.
let language = "en";
const PARAMETER = /\{(\w+)(?:([:?])([^{}]*))?\}/g;
function is_empty(value) { return value === null || value === undefined || value === "" || (Array.isArray(value) && !value.length); }
function t(key, parameters = {}) {
  const template = WORDS[language][key] ?? key;
  const kept = template.replace(/\[([^\[\]]*)\]/g, (_, text) => ([...text.matchAll(PARAMETER)].some(([, name]) => is_empty(parameters[name])) ? "" : text));
  return kept.replace(PARAMETER, (_, name, kind, form) => (kind === "?" ? chosen(parameters[name], form) : shown(parameters[name], form ?? ""))).trim();
}
// A message of the report, {code, ...parameters}: its template CODE.variant, or CODE where there is none.
function say(message, variant = "") {
  const key = `${message.code}.${variant}`;
  return t(key in WORDS[language] ? key : message.code, message);
}
function chosen(value, forms) { return forms.split("|")[(Array.isArray(value) ? value.length : value) === 1 ? 0 : 1]; }
function shown(value, form) {
  if (Array.isArray(value)) return value.map((item) => shown(item, form)).join(", ");
  if (value !== null && typeof value === "object") return say(value, form);
  const digits = /^\.(\d)(f|%)$/.exec(form);
  if (digits) return digits[2] === "%" ? percent(value, Number(digits[1])) : value.toFixed(Number(digits[1]));
  return { s: () => seconds(value), GiB: () => `${(value / 2 ** 30).toFixed(1)} GiB`, MB: () => `${(value / 1e6).toFixed(1)} MB` }[form]?.() ?? String(value);
}
function size_of(count, of = unit) { return t(of === "GPU" ? "gpus" : "cpu_ranks", { count }); }
