// Runs inside nginx (njs): who asks, and whether the JSON of an HTTP request may reach Triton.
import crypto from 'crypto';

const TOKEN = /^Bearer ([A-Za-z0-9_-]{1,64})\.([0-9]{1,12})\.([A-Za-z0-9_-]{43})$/;

// The subject of a valid token, else "!" and the reason. See serving/front_door/tokens.py.
function client(r) {
    const given = r.headersIn['Authorization'];
    if (!given) {
        return '!no token; send it in the header Authorization: Bearer TOKEN';
    }
    const parts = TOKEN.exec(given);
    if (!parts) {
        return '!the token cannot be read';
    }
    const key = Buffer.from(r.variables.token_key, 'hex');
    const expected = crypto.createHmac('sha256', key).update(parts[1] + '.' + parts[2]).digest('base64url');
    let difference = 0; // compared in constant time
    for (let i = 0; i < 43; i++) {
        difference |= expected.charCodeAt(i) ^ parts[3].charCodeAt(i);
    }
    if (difference) {
        return '!the token is not signed by this server';
    }
    return Number(parts[2]) * 1000 > Date.now() ? parts[1] : '!the token has expired';
}

// POST .../infer: Triton 2.51 ends by SIGSEGV on deeply nested JSON, so only JSON of a limited depth is passed on.
function infer(r) {
    const refuse = (status, reason) => {
        r.headersOut['Content-Type'] = 'application/json';
        r.return(status, JSON.stringify({error: reason}));
    };
    const given = r.headersIn['Inference-Header-Content-Length'];
    let body;
    try {
        body = r.requestBuffer || Buffer.alloc(0);
    } catch (error) { // nginx has put it into a file: with what is around its chunks it was larger than the limit
        return refuse(413, 'the request is too large, or in too many chunks');
    }
    if (given !== undefined && (!/^[0-9]{1,9}$/.test(given) || Number(given) > body.length)) {
        return refuse(400, 'Inference-Header-Content-Length: expected 0 to ' + body.length + ', the size of the body');
    }
    const size = given === undefined ? body.length : Number(given);
    if (size > Number(r.variables.json_bytes)) {
        return refuse(413, 'more than ' + r.variables.json_bytes + ' bytes of JSON; send tensors as bytes behind it');
    }
    const most = Number(r.variables.json_depth);
    const json = body.slice(0, size);
    if (openings(json, most) > most && depth(json) > most) {
        return refuse(400, 'JSON that is nested deeper than ' + most);
    }
    r.internalRedirect('@checked');
}

// How many lists and objects begin, in strings too; stops counting above most. Fast, and enough for most requests.
function openings(json, most) {
    let count = 0;
    [0x5b, 0x7b].forEach((bracket) => {
        for (let i = json.indexOf(bracket); i >= 0 && count <= most; i = json.indexOf(bracket, i + 1)) {
            count++;
        }
    });
    return count;
}

// How deep they are nested, byte by byte: a regular expression can take seconds on what is made for that.
function depth(json) {
    let now = 0, deepest = 0, quoted = false;
    for (let i = 0; i < json.length; i++) {
        const byte = json[i];
        if (byte === 0x22) {
            quoted = !quoted;
        } else if (quoted) {
            i += byte === 0x5c ? 1 : 0;
        } else if (byte === 0x5b || byte === 0x7b) {
            deepest = Math.max(deepest, ++now);
        } else if (byte === 0x5d || byte === 0x7d) {
            now = Math.max(now - 1, 0);
        }
    }
    return deepest;
}

export default {client, infer};
