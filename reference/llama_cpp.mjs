// Runs a GGUF file in llama.cpp (through node-llama-cpp) for export_check.py.
//
// Reads JSON from stdin: {"model": PATH, "texts": [TEXT...], "prompt": [ID...], "count": N}. Writes one line of JSON: the ids
// of the texts, the logits after each id of the prompt, and N ids that continue it greedily.
import {readFileSync} from "node:fs";
import {getLlama} from "node-llama-cpp";

const {model: modelPath, texts, prompt, count} = JSON.parse(readFileSync(0, "utf8"));
const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: 1});
const model = await llama.loadModel({modelPath});
const context = await model.createContext({contextSize: model.trainContextSize, threads: 1});
const sequence = context.getSequence();

const next = {generateNext: {logits: true, options: {temperature: 0}}};
const outputs = await sequence.controlledEvaluate(prompt.map((id) => [id, next]));
const logits = outputs.map(({next}) => {
    const row = [];
    for (const [id, logit] of next.logits) row[id] = logit;
    return row;
});

await sequence.clearHistory();
const greedy = [];
if (count > 0)
    for await (const id of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true}))
        if (greedy.push(id) === count) break;

const release = llama.llamaCppRelease;
const answer = JSON.stringify({
    release: `${release.repo} ${release.release}`,
    end: model.tokens.eos,
    ids: texts.map((text) => model.tokenize(text)),
    logits,
    greedy
});
// Exits once the pipe has taken all of it.
process.stdout.write(`${answer}\n`, () => process.exit(0));
