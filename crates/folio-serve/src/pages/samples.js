// The generated samples, token by token.

import { byId, make, setText } from "./shell.js";
import { initRoving, isWritable, percent, pieces, shown } from "./tokens.js";

/** The probabilities that separate the color classes p0 (unlikely) to p5 (likely). */
const LEVELS = [0.01, 0.05, 0.2, 0.5, 0.8];

const level = (probability) => LEVELS.filter((bound) => probability >= bound).length;

const FINISH_REASONS = { length: "stopped at the token limit", stop: "finished" };

/** One sample: the prompt, the generated tokens, and its buttons. */
export class Sample {
  /**
   * `model` is an entry of /api/models; `actions` has the functions select(sample, start), extend(sample) and
   * branch(sample, index, token).
   */
  constructor(number, model, prompt, actions) {
    this.model = model;
    this.prompt = prompt;
    this.actions = actions;
    this.tokens = [];
    this.text = "";
    this.finish = null;
    this.piece = pieces();
    this.build(number);
  }

  build(number) {
    const heading = make("h3", { id: `sample-${number}`, textContent: `Sample ${number}` });
    const { run, checkpoint } = this.model;
    const model = make("span", { className: "quiet model", textContent: `${run}, ${checkpoint}` });
    this.facts = make("span", { className: "quiet" });
    this.extendButton = make("button", { type: "button", textContent: "Continue", "aria-describedby": heading.id });
    this.extendButton.addEventListener("click", () => this.actions.extend(this));
    this.copyButton = make("button", { type: "button", textContent: "Copy", "aria-describedby": heading.id });
    this.copyButton.addEventListener("click", () => this.copy());
    this.list = make("span", { role: "listbox", "aria-label": `Tokens of sample ${number}`, "aria-orientation": "horizontal" });
    this.list.addEventListener("pointerover", ({ target }) => this.inspect(target));
    initRoving(this.list, (option) => {
      this.inspect(option);
      this.actions.select(this, Number(option.dataset.start));
    });
    this.plain = make("pre", { tabIndex: 0, role: "region", "aria-label": `Plain text of sample ${number}` });
    this.element = make(
      "article",
      { className: "sample", "aria-labelledby": heading.id },
      make("header", {}, heading, model, this.facts, make("span", { className: "buttons" }, this.extendButton, this.copyButton)),
      make("p", { className: "text" }, make("span", { className: "prompt", textContent: this.prompt }), this.list),
      make("details", {}, make("summary", { textContent: "Plain text" }), this.plain),
    );
  }

  /** The prompt and the generated text. */
  whole() {
    return this.prompt + this.text;
  }

  /** Adds tokens and the text that became final with them. */
  add(tokens, text, finish) {
    for (const token of tokens) this.addToken(token);
    this.text += text;
    this.finish = finish;
    this.showFacts(finish);
  }

  showFacts(finish) {
    const end = finish ? `, ${FINISH_REASONS[finish] ?? finish}` : "";
    setText(this.facts, `${this.tokens.length} ${this.tokens.length === 1 ? "token" : "tokens"}${end}`);
  }

  addToken(token) {
    const last = this.tokens.at(-1);
    const start = last ? last.start + last.piece.length : this.prompt.length;
    const piece = this.piece(token.text);
    const probability = Math.exp(token.logprob);
    const option = make("span", {
      className: `token p${level(probability)}`,
      role: "option",
      tabIndex: this.tokens.length === 0 ? 0 : -1,
      textContent: piece,
      "aria-label": `${shown(token.text)}, ${percent(probability)}`,
      "aria-selected": "false",
      "data-index": this.tokens.length,
      "data-start": start,
    });
    option.classList.toggle("part", piece === "");
    option.classList.toggle("break", /^\n+$/.test(piece));
    this.tokens.push({ ...token, piece, start, probability });
    this.list.append(option);
  }

  /**
   * Called at the end of a request. Removes tokens beyond the text, such as those of a stop string. `reason` says why
   * the request ended if the model did not finish.
   */
  end(reason) {
    if (this.finish) {
      const end = this.whole().length;
      this.keep(this.tokens.filter(({ start, piece }) => start < end || (start === end && piece === "")).length);
      const last = this.tokens.at(-1);
      // A stop string may cut it, or it may end inside a character.
      if (last) last.piece = this.list.lastElementChild.textContent = this.whole().slice(last.start);
    } else {
      this.text = this.joined();
    }
    this.showFacts(this.finish ?? reason);
    this.piece = pieces();
    this.plain.textContent = this.whole();
  }

  /** The prompt and the first `count` tokens. */
  upTo(count) {
    const pieces = this.tokens.slice(0, count).map(({ piece }) => piece);
    return this.prompt + pieces.join("");
  }

  /** The text of all tokens. */
  joined() {
    return this.tokens.map(({ piece }) => piece).join("");
  }

  /** Keeps the first `count` tokens. */
  keep(count) {
    this.tokens.length = count;
    while (this.list.children.length > count) this.list.lastElementChild.remove();
  }

  /** Replaces a token by an alternative and removes everything after it. */
  branch(index, [text, logprob]) {
    const { alternatives } = this.tokens[index];
    this.keep(index);
    this.text = this.joined();
    this.piece = pieces();
    this.finish = null;
    this.add([{ text, logprob, alternatives }], text, null);
  }

  inspect(target) {
    const option = target.closest('[role="option"]');
    if (option) inspector.show(this, Number(option.dataset.index));
  }

  setBusy(busy) {
    this.extendButton.disabled = busy;
    this.element.setAttribute("aria-busy", String(busy));
  }

  async copy() {
    await navigator.clipboard.writeText(this.whole());
    setText(byId("announcer"), "Copied.");
  }
}

/** The bar with details of the token under the pointer or with the focus. */
export const inspector = {
  isBusy: false,

  show(sample, index) {
    const { id, text, probability, alternatives } = sample.tokens[index];
    const name = id === undefined ? "" : `, token ${id}`;
    byId("token-line").replaceChildren(
      make("strong", { textContent: shown(text) }),
      ` ${percent(probability)}${name}`,
    );
    const items = alternatives.map((alternative) => {
      const button = make(
        "button",
        { type: "button", disabled: this.isBusy || !isWritable(alternative[0]), title: "Continue with this token" },
        `${shown(alternative[0])} `,
        make("b", { textContent: percent(Math.exp(alternative[1])) }),
      );
      button.dataset.writable = String(isWritable(alternative[0]));
      if (alternative[0] === text) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => sample.actions.branch(sample, index, alternative));
      return make("li", {}, button);
    });
    byId("alternatives").replaceChildren(...items);
    byId("inspector").hidden = false;
  },

  /** Alternatives are disabled while a sample is being generated. */
  setBusy(busy) {
    this.isBusy = busy;
    for (const button of byId("alternatives").querySelectorAll("button")) {
      button.disabled = busy || button.dataset.writable === "false";
    }
  },

  hide() {
    byId("inspector").hidden = true;
  },
};
