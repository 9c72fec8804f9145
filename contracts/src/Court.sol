// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IOperatorRegistry} from "./IOperatorRegistry.sol";
import {Context, IStep} from "./IStep.sol";
import {Layout} from "./Layout.sol";
import {Params} from "./RunHeader.sol";
import {Sha} from "./Sha.sol";
import {UnitBounds} from "./UnitBounds.sol";

/// What an operator signs off-chain (EIP-712, no gas): this receipt's run of this model has this state root, and whoever
/// can show before `expires` (seconds) that it is wrong may.
struct Claim {
    address claimant;
    bytes32 receipt;
    bytes32 modelId;
    bytes32 stateRoot;
    uint64 expires;
}

/// @title Games about claims (docs/spec/16-chain-disputes.md)
/// A game is between a claim's operator and one challenger; any number of them about one claim may run. It never says that
/// its winner is right: only that the claim is wrong, or that this challenge of it was. Nobody is ever paid inside a game:
/// what somebody is owed is withdrawn.
contract Court {
    enum Stage {
        None,
        Answer, // the claimant opens the unit and commits to its trace
        Reveal, // the claimant shows the nodes below the chosen one
        Choose, // the challenger goes down
        Prove, // the claimant proves the chosen element of the chosen tile
        Over,
        Parts, // the claimant shows the hashes of the tiles that the state root commits of the unit
        Tile, // the claimant shows the bytes of the chosen tile
        Pick // the challenger names an element of it
    }

    struct Game {
        address claimant;
        uint40 last; // when the last move was made, seconds
        uint40 claimantLeft; // of its time
        Stage stage;
        address challenger;
        uint40 challengerLeft;
        uint32 position;
        uint16 unit;
        uint128 bond;
        uint32 tiles;
        uint32 from; // of the node: siblings `from` … `to` - 1 of `level`
        uint32 to;
        uint8 level;
        bytes32 node; // its hash
        bytes32 claim;
        bytes32 context; // the hash of what the one-step rules must know; before the answer of model and state root
        uint32 element; // of the tile
        bool asked; // for the parts' tiles
    }

    error BadParameter();
    error NotYourTurn();
    error WrongStage(Stage stage);
    error TooLate();
    error NotLate();
    error BadSignature();
    error ClaimExpired();
    error OwnClaim();
    error AlreadyChallenged();
    error AlreadyConvicted();
    error AlreadyAsked();
    error BondTooSmall(uint256 least);
    error OtherKind();
    error OtherContext();
    error OtherElement();
    error NotTheNode();
    error NoSuchNode();
    error ProvesNothing(uint256 code);
    error NotConvicted();
    error NothingOwed();
    error NotPaid();

    event Opened(
        bytes32 indexed game,
        bytes32 indexed claim,
        address indexed challenger,
        address claimant,
        uint32 position,
        uint16 unit,
        uint256 bond
    );
    event Answered(bytes32 indexed game, bytes32 unitRoot, bytes32 root, bytes32[] children);
    event Revealed(bytes32 indexed game, bytes32[] children);
    event PartsAsked(bytes32 indexed game);
    event PartsShown(bytes32 indexed game, bytes32[][] hashes, bytes head);
    event Chosen(bytes32 indexed game, uint8 level, uint32 from, uint32 to, bytes32 node);
    event TileAsked(bytes32 indexed game, uint32 tile);
    event TileShown(bytes32 indexed game, bytes data);
    event TileChosen(bytes32 indexed game, uint32 tile, uint32 element);
    event Refuted(bytes32 indexed game);
    event Convicted(bytes32 indexed claim, address indexed claimant, address indexed challenger, uint256 code);
    event Ended(bytes32 indexed game);
    event Withdrawn(address indexed account, address indexed to, uint256 amount);

    /// The unit of a game about the tokens: whether the token behind the position is the one that the tail there chose.
    uint16 public constant TOKENS = type(uint16).max;
    uint256 public constant SILENT = 100;
    uint256 private constant NO_ELEMENT = 101;
    /// A reveal shows the nodes so many halvings below a node, 16 at most.
    uint256 public constant HALVINGS = 4;
    /// Named instead of an element by who must see the tile first.
    uint32 public constant UNSEEN = type(uint32).max;
    uint256 private constant MAX_ESCALATION = 4;
    uint256 private constant VALUE = 7;
    uint256 private constant CUT = 9;
    uint256 private constant TRAP = 10;
    uint256 private constant OTHER_TOKENS = 12;
    uint256 private constant OTHER_RECEIPT = 13;
    bytes32 private constant TILE_TAG = "AOS/trace-tile/v1\x00";
    uint256 private constant TILE_TAG_SIZE = 18;
    bytes32 private constant DOMAIN =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
    bytes32 private constant CLAIM = keccak256(
        "Claim(address claimant,bytes32 receipt,bytes32 modelId,bytes32 stateRoot,uint64 expires)"
    );
    bytes32 private constant UNIT_ROOT =
        keccak256("UnitRoot(bytes32 claim,uint32 position,uint16 unit,bytes32 unitRoot)");

    IOperatorRegistry public immutable registry;
    UnitBounds public immutable bounds;
    uint256 public immutable bond;
    uint256 public immutable slashAmount;
    uint40 public immutable grace;
    uint40 public immutable budget;
    IStep[] public steps;
    mapping(bytes32 game => Game) private _games;
    /// Games that run about a claim.
    mapping(bytes32 claim => uint256 count) public running;
    mapping(bytes32 claim => bool) public convicted;
    mapping(address account => uint256 amount) public owed;

    /// @param bond_ wei of a challenge where no other is open about the claim, doubled for each that is, four times at most
    /// @param slash_ wei that a convicted claim costs @param grace_ seconds of each move that count for nobody
    /// @param budget_ seconds that each party has for all of its moves
    constructor(
        IOperatorRegistry registry_,
        UnitBounds bounds_,
        IStep[] memory steps_,
        uint256 bond_,
        uint256 slash_,
        uint40 grace_,
        uint40 budget_
    ) {
        require(bond_ > 0 && bond_ < 1 << 120 && slash_ > 0 && budget_ > 0, BadParameter());
        require(grace_ < 1 << 32 && budget_ < 1 << 32 && steps_.length > 0, BadParameter());
        registry = registry_;
        bounds = bounds_;
        steps = steps_;
        bond = bond_;
        slashAmount = slash_;
        grace = grace_;
        budget = budget_;
    }

    // --- the challenger opens

    /// Challenges one unit at one position of a claim, or (`TOKENS`) the token behind the position. Locks the claimant's
    /// stake.
    function open(Claim calldata claim, bytes calldata signature, uint32 position, uint16 unit)
        external
        payable
        returns (bytes32 id)
    {
        bytes32 claimId = _checked(claim, signature);
        require(msg.sender != claim.claimant, OwnClaim());
        require(!convicted[claimId], AlreadyConvicted());
        uint256 least = requiredBond(claimId);
        require(msg.value >= least && msg.value < 1 << 128, BondTooSmall(least));
        id = gameId(claimId, msg.sender);
        Game storage game = _games[id];
        require(game.stage == Stage.None, AlreadyChallenged());
        game.claimant = claim.claimant;
        game.last = uint40(block.timestamp);
        game.claimantLeft = budget;
        game.stage = Stage.Answer;
        game.challenger = msg.sender;
        game.challengerLeft = budget;
        game.position = position;
        game.unit = unit;
        game.bond = uint128(msg.value);
        game.claim = claimId;
        game.context = keccak256(abi.encode(claim.modelId, claim.stateRoot));
        ++running[claimId];
        emit Opened(id, claimId, msg.sender, claim.claimant, position, unit, msg.value);
        registry.lock(claim.claimant);
    }

    // --- the claimant's moves

    /// Opens the unit under the claim's state root, commits to the root of its trace, and shows the first nodes. Refutes the
    /// challenge where the run has no such unit.
    function answer(
        bytes32 id,
        bytes32 modelId,
        bytes32 stateRoot,
        Params calldata params,
        bytes calldata opening,
        bytes32 root,
        bytes32[] calldata children
    ) external {
        Game storage game = _game(id, Stage.Answer);
        _tick(game);
        require(game.unit != TOKENS, OtherKind());
        require(game.context == keccak256(abi.encode(modelId, stateRoot)), OtherContext());
        (Context memory c, uint256 tiles) =
            bounds.open(modelId, stateRoot, game.position, game.unit, params, opening);
        if (tiles == 0) {
            _refute(id, game);
            return;
        }
        c.unitRoot = _unitRoot(c, tiles, root);
        (uint256 level, uint256 from, uint256 to) = _normal(Layout.tree(tiles), 0, 0, 1);
        require(_rootOf(Layout.tree(tiles), level, from, to, children) == root, NotTheNode());
        game.context = keccak256(abi.encode(c));
        game.node = root;
        game.tiles = uint32(tiles);
        (game.level, game.from, game.to) = (uint8(level), uint32(from), uint32(to));
        game.stage = Stage.Choose;
        emit Answered(id, c.unitRoot, root, children);
    }

    /// Shows that the token behind the position is the one that the tail there chose, or that none chose one: refutes the
    /// challenge. @param proof `Around.tokenIsChosen`'s.
    function answerTokens(bytes32 id, bytes32 modelId, bytes32 stateRoot, bytes calldata proof) external {
        Game storage game = _game(id, Stage.Answer);
        _tick(game);
        require(game.unit == TOKENS, OtherKind());
        require(game.context == keccak256(abi.encode(modelId, stateRoot)), OtherContext());
        require(bounds.tokenIsChosen(modelId, stateRoot, game.position, proof), ProvesNothing(OTHER_TOKENS));
        _refute(id, game);
    }

    /// Shows the nodes below the chosen one, from left to right. They prove themselves.
    function reveal(bytes32 id, bytes32[] calldata children) external {
        Game storage game = _game(id, Stage.Reveal);
        _tick(game);
        require(
            _rootOf(Layout.tree(game.tiles), game.level, game.from, game.to, children) == game.node, NotTheNode()
        );
        game.stage = Stage.Choose;
        emit Revealed(id, children);
    }

    /// Shows the hashes of the tiles of the unit's parts, part after part. They lead to the parts' roots.
    /// @param head The sampler record's first tile, whose cuts the trace is a function of; empty where no record is kept.
    function showParts(bytes32 id, Context calldata c, bytes32[][] calldata hashes, bytes calldata head) external {
        Game storage game = _game(id, Stage.Parts);
        _tick(game);
        require(game.context == keccak256(abi.encode(c)), OtherContext());
        _checkParts(c, hashes);
        if (hashes.length == 3 && c.unit > c.nLayers && hashes[1].length != 0) {
            require(_leaf("", 0, head) == hashes[1][0], NotTheNode());
        } else {
            require(head.length == 0, NotTheNode());
        }
        game.stage = Stage.Choose;
        emit PartsShown(id, hashes, head);
    }

    /// Shows the chosen tile.
    function showTile(bytes32 id, bytes calldata data) external {
        Game storage game = _game(id, Stage.Tile);
        _tick(game);
        require(_leaf(TILE_TAG, TILE_TAG_SIZE, data) == game.node, NotTheNode());
        game.stage = Stage.Pick;
        emit TileShown(id, data);
    }

    /// Proves the chosen element: the challenge is refuted where the proof holds, the claim convicted where it does not.
    /// @param tile What was chosen, with `element`: a proof that comes to meet another choice, after a reorganisation, is no
    /// move. @param step Which contract has the rule. @param shown The element that is proven: another one than the chosen
    /// only to show that the whole tile is all ones.
    function prove(
        bytes32 id,
        Context calldata c,
        uint256 tile,
        uint256 element,
        uint256 step,
        uint256 shown,
        bytes calldata proof
    ) external {
        Game storage game = _game(id, Stage.Prove);
        _tick(game);
        require(game.context == keccak256(abi.encode(c)), OtherContext());
        require(tile == game.from && element == game.element, OtherElement());
        uint256 code = _check(steps[step], c, tile, element, shown, proof);
        require(code != NO_ELEMENT || shown == element, ProvesNothing(code));
        // A challenger that names an element which the tile has not challenges nothing.
        if (code == 0 || code == NO_ELEMENT) _refute(id, game);
        else _convict(id, game, code);
    }

    // --- the challenger's moves

    /// Asks for the hashes of the tiles that the state root commits of the unit, once a game: who finds a root that is not
    /// its own cannot tell from that which tile is wrong.
    function askParts(bytes32 id) external {
        Game storage game = _game(id, Stage.Choose);
        _tick(game);
        require(!game.asked, AlreadyAsked());
        game.asked = true;
        game.stage = Stage.Parts;
        emit PartsAsked(id);
    }

    /// Goes down to a node: as far as the last nodes that were shown, or further with hashes from elsewhere. At a tile it
    /// names the element in question, or `UNSEEN` to be shown the tile first.
    /// @param path A bit a halving, the first one highest: 1 is the right half. @param length How many halvings.
    /// @param node The node's hash. @param siblings The other halves, the lowest first.
    function choose(
        bytes32 id,
        uint256 path,
        uint256 length,
        bytes32 node,
        bytes32[] calldata siblings,
        uint32 element
    ) external {
        Game storage game = _game(id, Stage.Choose);
        _tick(game);
        uint256[9] memory tree = Layout.tree(game.tiles);
        (uint256 level, uint256 from, uint256 to) = (game.level, game.from, game.to);
        require(length == siblings.length && length < 32, NoSuchNode());
        for (uint256 i = 1; i <= length; ++i) {
            require(to - from > 1, NoSuchNode());
            uint256 middle = from + Layout.split(to - from);
            if ((path >> (length - i)) & 1 != 0) from = middle;
            else to = middle;
            (level, from, to) = _normal(tree, level, from, to);
        }
        require(length >= HALVINGS || to - from == 1, NoSuchNode());
        bytes32 root = node;
        for (uint256 i = 0; i < length; ++i) {
            root = (path >> i) & 1 != 0 ? Sha.node(siblings[i], root) : Sha.node(root, siblings[i]);
        }
        require(root == game.node, NotTheNode());
        game.node = node;
        (game.level, game.from, game.to) = (uint8(level), uint32(from), uint32(to));
        if (to - from == 1) {
            if (element == UNSEEN) {
                game.stage = Stage.Tile;
                emit TileAsked(id, uint32(from));
            } else {
                _name(id, game, element);
            }
        } else {
            game.stage = Stage.Reveal;
            emit Chosen(id, uint8(level), uint32(from), uint32(to), node);
        }
    }

    /// Names the element in question of the tile that was shown.
    function pick(bytes32 id, uint32 element) external {
        Game storage game = _game(id, Stage.Pick);
        _tick(game);
        _name(id, game, element);
    }

    // --- without moves

    /// Convicts a claim at once, from openings that its operator gave: a tile under a unit root that it signed is wrong.
    /// @param signatures Of the claim, and of the unit root (`UnitRoot`).
    function convict(
        Claim calldata claim,
        bytes[2] calldata signatures,
        Context calldata c,
        Params calldata params,
        bytes calldata opening,
        uint256 step,
        uint256 index,
        uint256 element,
        bytes calldata proof
    ) external {
        bytes32 claimId = _checked(claim, signatures[0]);
        bytes32 unitRootId =
            keccak256(abi.encode(UNIT_ROOT, claimId, uint32(c.position), uint16(c.unit), c.unitRoot));
        require(_signer(unitRootId, signatures[1]) == claim.claimant, BadSignature());
        (Context memory opened, uint256 tiles) =
            bounds.open(claim.modelId, claim.stateRoot, uint32(c.position), uint32(c.unit), params, opening);
        opened.unitRoot = c.unitRoot;
        require(tiles != 0 && keccak256(abi.encode(opened)) == keccak256(abi.encode(c)), OtherContext());
        uint256 code = _check(steps[step], c, index, element, element, proof);
        // An opening that does not hold is nobody's fault here: anybody can bring one. The path of a tile below its part's
        // root, code 8, is such an opening too.
        require(code == VALUE || code == CUT || code == TRAP, ProvesNothing(code));
        _convictAtOnce(claim, claimId, code);
    }

    /// Convicts a claim at once: the token behind a position is not the one that the tail there chose.
    /// @param proof `Around.tokenIsChosen`'s.
    function convictToken(Claim calldata claim, bytes calldata signature, uint32 position, bytes calldata proof)
        external
    {
        bytes32 claimId = _checked(claim, signature);
        require(!bounds.tokenIsChosen(claim.modelId, claim.stateRoot, position, proof), ProvesNothing(0));
        _convictAtOnce(claim, claimId, OTHER_TOKENS);
    }

    /// Convicts a claim at once: its header commits to other tokens than those that it hashes. They are all shown.
    /// The other arguments are `Around.tokensAreHashed`'s.
    function convictTokens(
        Claim calldata claim,
        bytes calldata signature,
        bytes calldata header,
        bytes32 nonce,
        uint256 nPrompt,
        bytes calldata ids
    ) external {
        bytes32 claimId = _checked(claim, signature);
        require(!bounds.tokensAreHashed(claim.stateRoot, header, nonce, nPrompt, ids), ProvesNothing(0));
        _convictAtOnce(claim, claimId, OTHER_TOKENS);
    }

    /// Convicts a claim at once: its receipt states something else about the run than the header. The other arguments are
    /// `Around.receiptStates`'.
    function convictReceipt(
        Claim calldata claim,
        bytes calldata signature,
        bytes calldata header,
        bytes calldata core,
        uint256 member,
        uint256 begin
    ) external {
        bytes32 claimId = _checked(claim, signature);
        require(
            !bounds.receiptStates(claim.stateRoot, header, claim.receipt, core, member, begin), ProvesNothing(0)
        );
        _convictAtOnce(claim, claimId, OTHER_RECEIPT);
    }

    /// Convicts a claim at once: its run was computed with other parameters than its receipt hashes. The other arguments are
    /// `Around.paramsAreAsked`'s.
    function convictParams(
        Claim calldata claim,
        bytes calldata signature,
        bytes calldata header,
        bytes calldata core,
        uint256 begin,
        Params calldata params,
        bool drawn,
        uint64 seed
    ) external {
        bytes32 claimId = _checked(claim, signature);
        require(
            !bounds.paramsAreAsked(claim.stateRoot, header, claim.receipt, core, begin, params, drawn, seed),
            ProvesNothing(0)
        );
        _convictAtOnce(claim, claimId, OTHER_RECEIPT);
    }

    /// Ends a game whose mover is out of time. Anybody may.
    function timeout(bytes32 id) external {
        Game storage game = _games[id];
        require(game.stage != Stage.None && game.stage != Stage.Over, WrongStage(game.stage));
        require(block.timestamp > deadline(id), NotLate());
        if (_challengers(game.stage)) _refute(id, game);
        else _convict(id, game, SILENT);
    }

    /// Ends a game about a claim that another one has convicted: the bond goes back. Anybody may.
    function settle(bytes32 id) external {
        Game storage game = _games[id];
        require(game.stage != Stage.None && game.stage != Stage.Over, WrongStage(game.stage));
        require(convicted[game.claim], NotConvicted());
        owed[game.challenger] += game.bond;
        _end(id, game);
        registry.unlock(game.claimant);
    }

    /// Pays what the caller is owed, to an address of its choice.
    function withdraw(address payable to) external {
        uint256 amount = owed[msg.sender];
        require(amount > 0, NothingOwed());
        owed[msg.sender] = 0;
        emit Withdrawn(msg.sender, to, amount);
        (bool paid,) = to.call{value: amount}("");
        require(paid, NotPaid());
    }

    // --- to read

    function games(bytes32 id) external view returns (Game memory) {
        return _games[id];
    }

    function gameId(bytes32 claimId, address challenger) public pure returns (bytes32) {
        return keccak256(abi.encode(claimId, challenger));
    }

    /// The last second at which the mover is in time.
    function deadline(bytes32 id) public view returns (uint256) {
        Game storage game = _games[id];
        uint256 left = _challengers(game.stage) ? game.challengerLeft : game.claimantLeft;
        return uint256(game.last) + grace + left;
    }

    function requiredBond(bytes32 claimId) public view returns (uint256) {
        uint256 count = running[claimId];
        return bond << (count < MAX_ESCALATION ? count : MAX_ESCALATION);
    }

    function claimHash(Claim calldata claim) public pure returns (bytes32) {
        return keccak256(
            abi.encode(CLAIM, claim.claimant, claim.receipt, claim.modelId, claim.stateRoot, claim.expires)
        );
    }

    /// What is signed for a struct's hash.
    function digest(bytes32 structHash) public view returns (bytes32) {
        bytes32 domain =
            keccak256(abi.encode(DOMAIN, keccak256("AOS court"), keccak256("1"), block.chainid, address(this)));
        return keccak256(abi.encodePacked(hex"1901", domain, structHash));
    }

    // --- inside

    function _checked(Claim calldata claim, bytes calldata signature) private view returns (bytes32 claimId) {
        require(block.timestamp <= claim.expires, ClaimExpired());
        claimId = claimHash(claim);
        require(_signer(claimId, signature) == claim.claimant && claim.claimant != address(0), BadSignature());
    }

    function _signer(bytes32 structHash, bytes calldata signature) private view returns (address) {
        require(signature.length == 65, BadSignature());
        return ecrecover(
            digest(structHash), uint8(signature[64]), bytes32(signature[0:32]), bytes32(signature[32:64])
        );
    }

    function _game(bytes32 id, Stage stage) private view returns (Game storage game) {
        game = _games[id];
        require(game.stage == stage, WrongStage(game.stage));
        require(msg.sender == (_challengers(stage) ? game.challenger : game.claimant), NotYourTurn());
    }

    /// @dev Whether the challenger moves.
    function _challengers(Stage stage) private pure returns (bool) {
        return stage == Stage.Choose || stage == Stage.Pick;
    }

    function _name(bytes32 id, Game storage game, uint32 element) private {
        game.element = element;
        game.stage = Stage.Prove;
        emit TileChosen(id, game.from, element);
    }

    /// @dev The mover's clock: what a move takes beyond the grace is its own time.
    function _tick(Game storage game) private {
        uint256 used = block.timestamp - game.last;
        used = used > grace ? used - grace : 0;
        if (_challengers(game.stage)) {
            require(used <= game.challengerLeft, TooLate());
            if (used != 0) game.challengerLeft -= uint40(used);
        } else {
            require(used <= game.claimantLeft, TooLate());
            game.claimantLeft -= uint40(used);
        }
        game.last = uint40(block.timestamp);
    }

    function _refute(bytes32 id, Game storage game) private {
        // Who was convicted in another game wins no bond any more.
        owed[convicted[game.claim] ? game.challenger : game.claimant] += game.bond;
        emit Refuted(id);
        _end(id, game);
        registry.unlock(game.claimant);
    }

    function _convict(bytes32 id, Game storage game, uint256 code) private {
        owed[game.challenger] += game.bond;
        bytes32 claim = game.claim;
        bool first = !convicted[claim];
        convicted[claim] = true;
        emit Convicted(claim, game.claimant, game.challenger, code);
        _end(id, game);
        if (first) registry.slash(game.claimant, game.challenger, slashAmount, id);
        else registry.unlock(game.claimant);
    }

    function _convictAtOnce(Claim calldata claim, bytes32 claimId, uint256 code) private {
        require(!convicted[claimId], AlreadyConvicted());
        convicted[claimId] = true;
        emit Convicted(claimId, claim.claimant, msg.sender, code);
        registry.lock(claim.claimant);
        registry.slash(claim.claimant, msg.sender, slashAmount, claimId);
    }

    function _end(bytes32 id, Game storage game) private {
        game.stage = Stage.Over;
        game.bond = 0;
        --running[game.claim];
        emit Ended(id);
    }

    /// @dev The rule's verdict; 0: the proof holds. Reverts where the rule reached none: no gas, another contract's rule.
    function _check(
        IStep step,
        Context calldata c,
        uint256 index,
        uint256 element,
        uint256 shown,
        bytes calldata proof
    ) private view returns (uint256) {
        try step.check(c, index, element, shown, proof) returns (bool) {
            return 0;
        } catch (bytes memory reason) {
            if (reason.length == 4 && bytes4(reason) == IStep.NoSuchElement.selector) return NO_ELEMENT;
            if (reason.length != 36 || bytes4(reason) != IStep.Fault.selector) {
                assembly ("memory-safe") {
                    revert(add(reason, 32), mload(reason))
                }
            }
            uint256 code;
            assembly ("memory-safe") {
                code := mload(add(reason, 36))
            }
            return code;
        }
    }

    function _checkParts(Context memory c, bytes32[][] calldata hashes) private view {
        bytes32[3] memory roots = [c.partRoot0, c.partRoot1, c.partRoot2];
        (,, uint256 parts) = Layout.partOf(c, c.position, c.unit, 0);
        require(hashes.length == (c.trapOp == 0 ? parts : 0), NotTheNode());
        for (uint256 i = 0; i < hashes.length; ++i) {
            (uint256 size, uint256 tileBytes,) = Layout.partOf(c, c.position, c.unit, i);
            bytes32[] memory leaves = hashes[i];
            uint256 n = leaves.length;
            require(n == (size + tileBytes - 1) / tileBytes, NotTheNode());
            if (n == 0) continue; // no record is kept at temperature 0
            (bytes32 root,) = Sha.range(leaves, n, 0, n, 0);
            require(root == roots[i], NotTheNode());
        }
    }

    function _leaf(bytes32 tag, uint256 tagSize, bytes calldata data) private view returns (bytes32) {
        uint256 offset;
        assembly ("memory-safe") {
            offset := data.offset
        }
        return Sha.leaf(tag, tagSize, offset, data.length);
    }

    function _unitRoot(Context memory c, uint256 tiles, bytes32 root) private pure returns (bytes32) {
        return sha256(
            abi.encodePacked(
                "AOS/unit-root/v1", bytes1(0), c.stateRoot, uint32(c.position), uint32(c.unit), uint32(tiles), root
            )
        );
    }

    /// @dev A node of one sibling is that of its children, as far as there are any.
    function _normal(uint256[9] memory tree, uint256 level, uint256 from, uint256 to)
        private
        pure
        returns (uint256, uint256, uint256)
    {
        while (to - from == 1 && level < tree[3]) {
            (level, from, to) = Layout.below(tree, level, from);
        }
        return (level, from, to);
    }

    /// @dev The hash of a node from the nodes that are `HALVINGS` halvings below it.
    function _rootOf(uint256[9] memory tree, uint256 level, uint256 from, uint256 to, bytes32[] calldata children)
        private
        view
        returns (bytes32 root)
    {
        uint256 used;
        (root, used) = _below(tree, level, from, to, HALVINGS, children, 0);
        require(used == children.length, NotTheNode());
    }

    function _below(
        uint256[9] memory tree,
        uint256 level,
        uint256 from,
        uint256 to,
        uint256 halvings,
        bytes32[] calldata children,
        uint256 used
    ) private view returns (bytes32, uint256) {
        (level, from, to) = _normal(tree, level, from, to);
        if (halvings == 0 || to - from == 1) {
            require(used < children.length, NotTheNode());
            return (children[used], used + 1);
        }
        uint256 middle = from + Layout.split(to - from);
        (bytes32 left, uint256 next) = _below(tree, level, from, middle, halvings - 1, children, used);
        (bytes32 right, uint256 last) = _below(tree, level, middle, to, halvings - 1, children, next);
        return (Sha.node(left, right), last);
    }
}
